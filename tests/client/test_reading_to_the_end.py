"""Reading to the end: everything that was written before is seen, or it is said that it is not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import pytest

from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Outgoing
from mint_stream.bus.table import LogRecord
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.client import feed
from mint_stream.client.feed import Place, read_to_end
from mint_stream.client.partitions import Partitions
from tests.conftest import FreshTopic

pytestmark = pytest.mark.kafka


class Seen:
    """Values in the order they came; `refused` cannot be taken in."""

    def __init__(self, refused: bytes | None = None) -> None:
        self.values: list[bytes | None] = []
        self.any = asyncio.Event()
        self._refused = refused

    def apply(self, _: int, records: Sequence[LogRecord], __: int) -> None:
        for record in records:
            if record.value == self._refused:
                raise ValueError("cannot apply")
            self.values.append(record.value)
            self.any.set()


@pytest.fixture
async def topic(fresh_topic: FreshTopic) -> str:
    """With two partitions."""
    return await fresh_topic(2)


@pytest.fixture
async def writer(connection: Connection, topic: str) -> AsyncIterator[TransactionalProducer]:
    """Has written `old` to partition 0, and `new` in a transaction that is open."""
    writer = TransactionalProducer(connection, f"tx-{topic}", "test")
    await writer.start()
    await written(writer, topic, b"old")
    await writer.commit()
    await written(writer, topic, b"new")
    yield writer
    await writer.stop()


async def written(writer: TransactionalProducer, topic: str, value: bytes) -> None:
    await writer.begin()
    await writer.acknowledged(await writer.send_raw(Outgoing(topic, b"k", value, partition=0)))


async def test_what_a_transaction_wrote_before_is_seen_though_it_ends_after(
    connection: Connection, topic: str, writer: TransactionalProducer
) -> None:
    seen = Seen()
    reading = asyncio.create_task(read_to_end(Partitions(connection), Place(topic), seen.apply))
    await seen.any.wait()
    await writer.commit()
    await reading
    assert seen.values == [b"old", b"new"]


async def test_a_transaction_that_hangs_is_not_waited_for_for_ever_and_that_is_said(
    connection: Connection, topic: str, writer: TransactionalProducer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TRANSACTION_S", 0.2)
    seen = Seen()
    with caplog.at_level(logging.WARNING, logger=feed.log.name):
        await read_to_end(Partitions(connection), Place(topic), seen.apply)
    assert seen.values == [b"old"]
    assert f"{topic}: a transaction is still open" in caplog.text


async def test_a_failure_while_a_transaction_is_waited_for_is_raised(
    connection: Connection, topic: str, writer: TransactionalProducer
) -> None:
    seen = Seen(refused=b"new")
    reading = asyncio.create_task(read_to_end(Partitions(connection), Place(topic), seen.apply))
    await seen.any.wait()
    await writer.commit()
    with pytest.raises(ValueError, match="cannot apply"):
        await reading
