"""A replay of many records at once: the same copy as record by record, whatever kills it, and nothing aborted in it."""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mint_stream import contracts
from mint_stream.app.catalog_copy import current_catalog
from mint_stream.bench.catalog_log import BulkWriter, CatalogLog, digest_of, name_of, records_of
from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.producer import Outgoing
from mint_stream.bus.replay import replay
from mint_stream.bus.table import LogReader
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog, Entry
from mint_stream.messages.adapters import head_key, revision_key

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

NAME = contracts.ADAPTER_REVISIONS.name()
ADAPTERS = 2500


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    with LocalKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="module")
async def log(broker: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> CatalogLog:
    """Adapters, some deleted again, and a transaction that was given up."""
    log = await CatalogLog.ready(Connection(broker.bootstrap_servers), ADAPTERS, tmp_path_factory.mktemp("marks"))
    given_up = TransactionalProducer(log.connection, "given-up", "test")
    await given_up.start()
    await given_up.begin()
    for key, value in records_of(name_of(1), 9):
        await given_up.send_raw(Outgoing(NAME, key, value, partition=log.home(name_of(1))))
    await given_up.abort()
    await given_up.begin()
    for index in range(100):
        adapter_id = name_of(index)
        for key in (revision_key(adapter_id, 1), head_key(adapter_id)):
            await given_up.send_raw(Outgoing(NAME, key, None, partition=log.home(adapter_id)))
    await given_up.commit()
    await given_up.stop()
    return log


def content(catalog: Catalog) -> dict[str, Any]:
    return {name: (catalog.head(name), catalog.head_position(name), catalog.revisions(name)) for name in sorted(catalog.adapters())}


async def folded_one_by_one(log: CatalogLog) -> dict[str, Any]:
    with Catalog(None, log.partitions) as catalog:
        catalog.subscribe(lambda change: None)  # who is watched folds record by record
        reader = LogReader(log.connection, NAME, catalog.apply)
        await reader.start()
        await reader.caught_up()
        await reader.stop()
        return content(catalog)


async def test_a_bulk_replay_gives_what_reading_one_by_one_gives(log: CatalogLog, tmp_path: Path) -> None:
    with Catalog(tmp_path, log.partitions) as catalog:
        await replay(log.connection, NAME, catalog.apply_all, {})
        assert len(catalog) == 2 * (ADAPTERS - 100), "the replay did all of it, not a reader after it"
        assert content(catalog) == await folded_one_by_one(log)
        assert catalog.number_of_step(name_of(100), f"job-{digest_of(name_of(100), 1)[:16]}", 200) == 1
        assert catalog.number_of_step(name_of(1), f"job-{digest_of(name_of(1), 1)[:16]}", 200) is None


async def test_a_replay_that_goes_on_reads_only_what_it_has_not(log: CatalogLog) -> None:
    seen: list[int] = []
    with Catalog(None, log.partitions) as catalog:
        await replay(log.connection, NAME, catalog.apply_all, {}, range(16))
        assert set(catalog.positions()) == set(range(16))
        await replay(log.connection, NAME, lambda batches: seen.extend(number for number, _, _ in batches), catalog.positions())
    assert set(seen) == set(range(16, log.partitions))


@pytest.mark.long
async def test_killed_amid_any_record_the_next_replay_goes_on_and_is_whole(log: CatalogLog, tmp_path: Path) -> None:
    held = [await killed_after(log, tmp_path, records) for records in (1, 41, 79, 300, 81, 1000, 1999)]
    assert held[:2] == [0, 0] and held == sorted(held) and held[-1] > 1000, "what was committed is not read again"
    async with current_catalog(log.connection, tmp_path, contracts.ADAPTER_REVISIONS) as (catalog, _):
        assert content(catalog) == await folded_one_by_one(log)


async def killed_after(log: CatalogLog, copy: Path, records: int) -> int:
    """How many records the copy held before a process replayed so many more and was killed."""
    arguments = ["-m", "tests.app.replay_process", log.connection.bootstrap_servers, str(copy), str(records)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == -9
    return int(said)


def entries(first: int, count: int) -> Sequence[Entry]:
    pairs = [pair for index in range(first, first + count) for pair in records_of(name_of(index), 1)]
    return [Entry(key, value, 2 * first + n) for n, (key, value) in enumerate(pairs)]


def test_memory_does_not_grow_with_adapters_that_nobody_asks_for() -> None:
    """No object of Python's stays for a record: ten times the adapters leave as much as one time does."""
    with Catalog(None, 1) as catalog:
        tracemalloc.start()
        try:
            held = [held_after(catalog, first) for first in range(0, 11_000, 1000)]
        finally:
            tracemalloc.stop()
        assert len(catalog) == 22_000
        assert held[-1] - held[1] < 18_000, "less than a byte a record"


def held_after(catalog: Catalog, first: int) -> int:
    catalog.apply(0, entries(first, 1000), 2 * first + 2000)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_memory_is_bounded_however_many_adapters_are_asked_for() -> None:
    with Catalog(None, 1) as catalog:
        for first in range(0, 10_000, 1000):
            catalog.apply(0, entries(first, 1000), 2 * first + 2000)
        for index in range(10_000):
            assert catalog.resolve(name_of(index)).digest == digest_of(name_of(index), 1)
        assert len(catalog._decoded) == 8192


async def test_packed_batches_arrive_in_order(log: CatalogLog, fresh_topic: Any, connection: Connection) -> None:
    topic = await fresh_topic(1)
    async with BulkWriter(connection) as writer:
        for number in range(3000):
            await writer.write(topic, 0, b"k", b"%04d" % number + b"x" * 400)
    found: list[bytes] = []
    await replay(connection, topic, lambda batches: found.extend(record.value for _, records, _ in batches for record in records), {})
    assert [int(value[:4]) for value in found] == list(range(3000))
