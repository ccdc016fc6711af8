"""A copy of the catalog goes on where it was left, and begins anew when it may have missed something."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from mint_stream import contracts
from mint_stream.app.catalog_copy import current_catalog, marking
from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogReader
from mint_stream.bus.topic_facts import topic_facts
from mint_stream.catalog import Catalog
from mint_stream.errors import BusUnavailable
from mint_stream.messages.adapters import Head, head_key

pytestmark = pytest.mark.kafka

REVISIONS = contracts.ADAPTER_REVISIONS
NAME = REVISIONS.name()
PARTITIONS = 2
TWO = REVISIONS.model_copy(update={"partitions": PARTITIONS})


class Log:
    """The topic of revisions on a broker of its own. Its cleanup policy lets a test take records away that a replay would need."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._admin = AIOKafkaAdminClient(**connection.options())
        self._producer = Producer(connection, source="test")

    async def create(self, retention_ms: int = 3_600_000) -> None:
        config = {"cleanup.policy": "delete", "delete.retention.ms": str(retention_ms)}
        await self._admin.create_topics([NewTopic(NAME, PARTITIONS, 1, topic_configs=config)])

    async def drop(self) -> None:
        await self._admin.delete_topics([NAME])
        while NAME in await self._admin.list_topics():
            pass

    async def write(self, adapter_id: str, partition: int = 0) -> None:
        head = Head(adapter_id=adapter_id, pool="p")
        await self._producer.publish_raw(Outgoing(NAME, head_key(adapter_id), head.encode(), partition=partition))

    async def forget(self, partition: int = 0, before: int = -1) -> None:
        """Take away what is in the log: whoever replays will not see it."""
        await self._admin.delete_records({TopicPartition(NAME, partition): RecordsToDelete(before)})

    async def __aenter__(self) -> "Log":
        await self._admin.start()
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()
        await self._admin.close()


@pytest.fixture(scope="module")
def own_connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with LocalKafka(tmp_path_factory.mktemp("catalog-kafka")) as broker:
        yield Connection(broker.bootstrap_servers)


@pytest.fixture
async def log(own_connection: Connection) -> AsyncIterator[Log]:
    async with Log(own_connection) as log:
        yield log
        if NAME in await log._admin.list_topics():
            await log.drop()


async def adapters(log: Log, path: Path) -> set[str]:
    """What a copy at `path` knows once it is current."""
    async with current_catalog(log.connection, path, TWO) as (catalog, reader):
        await reader.caught_up()  # and what this asks is answered after what the marking task asked
        return set(catalog.adapters())


async def test_a_copy_is_current_when_it_is_given(log: Log, tmp_path: Path) -> None:
    await log.create()
    for number in range(50):
        await log.write(f"a{number}", number % PARTITIONS)
    async with current_catalog(log.connection, tmp_path / "copy", TWO) as (catalog, _):
        assert len(set(catalog.adapters())) == 50


async def test_a_copy_follows_what_is_written_while_it_is_open(log: Log, tmp_path: Path) -> None:
    await log.create()
    async with current_catalog(log.connection, tmp_path / "copy", TWO) as (catalog, reader):
        await log.write("later", 1)
        await reader.caught_up()
        assert catalog.head("later") is not None
        assert catalog.positions()[1] == 1


async def test_a_second_start_keeps_what_it_knew_and_goes_on(log: Log, tmp_path: Path) -> None:
    await log.create()
    await log.write("before", 0)
    assert await adapters(log, tmp_path / "copy") == {"before"}
    await log.forget()
    await log.write("after", 0)
    assert await adapters(log, tmp_path / "copy") == {"before", "after"}
    assert await adapters(log, tmp_path / "another") == {"after"}, "a replay would have seen only this"


class Faltering(LogReader):
    """Cannot say at first where its log ends, as while its broker is away."""

    failures = 3

    async def caught_up(self) -> None:
        if self.failures:
            self.failures -= 1
            raise BusUnavailable("away")


async def test_a_broker_that_is_away_for_a_while_ends_no_marking() -> None:
    """Else the copy of a worker that lives long counts as old, and its next start replays everything."""
    with Catalog(None, PARTITIONS) as catalog:
        task = asyncio.create_task(marking(catalog, Faltering(Connection("unused:1"), NAME, catalog.apply), every_s=0.0))
        while not catalog._rows.fresh_at_ms():
            assert not task.done(), task.exception()
            await asyncio.sleep(0)
        task.cancel()


async def test_a_topic_that_was_created_anew_is_replayed(log: Log, tmp_path: Path) -> None:
    await log.create()
    for adapter_id in ("old", "older"):
        await log.write(adapter_id, 0)
    assert await adapters(log, tmp_path / "copy") == {"old", "older"}
    before = await topic_facts(log.connection, NAME)
    await log.drop()
    await log.create()
    for adapter_id in ("new", "newer", "newest"):
        await log.write(adapter_id, 0)
    assert (await topic_facts(log.connection, NAME)).topic_id != before.topic_id
    assert await adapters(log, tmp_path / "copy") == {"new", "newer", "newest"}


async def test_a_copy_older_than_tombstones_are_kept_is_replayed(log: Log, tmp_path: Path) -> None:
    """Somebody may have been deleted, and the record that said so is gone."""
    await log.create(retention_ms=0)
    await log.write("gone", 0)
    assert await adapters(log, tmp_path / "copy") == {"gone"}
    await log.forget()
    await log.write("here", 0)
    assert await adapters(log, tmp_path / "copy") == {"here"}


async def test_the_facts_of_a_topic_are_its_own(log: Log) -> None:
    await log.create(retention_ms=12_345)
    facts = await topic_facts(log.connection, NAME)
    assert facts.delete_retention_ms == 12_345
    assert facts == await topic_facts(log.connection, NAME)
    assert len(facts.topic_id) == 36 and set(facts.topic_id) != {"0", "-"}


async def test_a_topic_that_does_not_exist_has_no_facts(log: Log) -> None:
    with pytest.raises(BusUnavailable, match="cannot describe topic no-such-topic"):
        await topic_facts(log.connection, "no-such-topic")


async def test_no_broker_has_no_facts() -> None:
    with pytest.raises(BusUnavailable, match=r"cannot describe topic t at 127\.0\.0\.1:9"):
        await topic_facts(Connection("127.0.0.1:9"), "t")
