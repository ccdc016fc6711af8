"""Founding a pool: the first serving worker's base is the pool's, and it stays so whatever is written later."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.errors import BaseConflict
from mint_stream.messages.fleet import PoolBase
from mint_stream.workers.pools import PoolBases, found_pool
from tests.provisioned import ensure_topics


def base_of(pool: str, digest: str = "a", **changes: Any) -> PoolBase:
    fields = {"architecture": "Tiny", "context_tokens": 64, "vocabulary_tokens": 256, "targets": (), "max_rank": 8}
    return PoolBase(pool=pool, base_digest=digest * 64, **fields | changes)


def record(value: bytes | None, offset: int = 0) -> LogRecord:
    return LogRecord(b"key", value, (), offset, 0)


def test_the_first_record_of_a_pool_counts_and_the_last_is_known() -> None:
    bases = PoolBases()
    written = [base_of("p", "a"), base_of("q", "b"), base_of("p", "c")]
    bases.apply(0, [record(base.encode(), offset) for offset, base in enumerate(written)], 3)
    assert {pool: base.base_digest[0] for pool, base in bases.first.items()} == {"p": "a", "q": "b"}
    assert {pool: base.base_digest[0] for pool, base in bases.last.items()} == {"p": "c", "q": "b"}


@pytest.mark.parametrize("value", [None, b"", b"junk", b'{"pool": "p"}', b"\xff"])
def test_an_unreadable_record_is_passed_over_and_told(value: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    bases = PoolBases()
    bases.apply(0, [record(value, 7), record(base_of("p").encode(), 8)], 9)
    assert bases.first == bases.last == {"p": base_of("p")}
    assert "offset=7 passed over" in caplog.text


@pytest.fixture
async def producer(connection: Connection) -> AsyncIterator[Producer]:
    producer = Producer(connection, source="test")
    await producer.start()
    yield producer
    await producer.stop()


@pytest.fixture
async def pool(connection: Connection, topic_prefix: str) -> str:
    await ensure_topics(connection, topic_prefix)
    return topic_prefix


async def written(connection: Connection, pool: str) -> list[str]:
    """The first letter of every digest in the log of this pool."""
    found: list[str] = []

    def take(_partition: int, records: Sequence[LogRecord], _next: int) -> None:
        found.extend(PoolBase.decode(one.value).base_digest[0] for one in records if one.key == pool.encode() and one.value != b"junk")

    reader = LogReader(connection, contracts.BASE_MODELS.name(), take)
    await reader.start()
    await reader.caught_up()
    await reader.stop()
    return found


@pytest.mark.kafka
async def test_the_first_writer_founds_and_the_same_base_agrees(connection: Connection, producer: Producer, pool: str) -> None:
    for _ in range(3):
        await found_pool(connection, producer, base_of(pool))
    assert await written(connection, pool) == ["a"]


@pytest.mark.kafka
async def test_another_base_is_a_conflict_that_names_both(connection: Connection, producer: Producer, pool: str) -> None:
    await found_pool(connection, producer, base_of(pool, "a"))
    with pytest.raises(BaseConflict, match=rf"pool '{pool}' runs base a{{12}} and this worker has b{{12}}: .*MINT_POOL"):
        await found_pool(connection, producer, base_of(pool, "b"))
    assert await written(connection, pool) == ["a"]


@pytest.mark.kafka
async def test_whoever_races_there_is_one_winner_and_the_log_ends_with_it(connection: Connection, producer: Producer, pool: str) -> None:
    """Compaction keeps the last record of a key, so a loser that came second writes the winner once more."""
    digests = "abcdef"
    outcomes = await asyncio.gather(
        *(found_pool(connection, producer, base_of(pool, digest)) for digest in digests), return_exceptions=True
    )
    log = await written(connection, pool)
    winners = [digest for digest, outcome in zip(digests, outcomes, strict=True) if isinstance(outcome, PoolBase)]
    losers = [outcome for outcome in outcomes if not isinstance(outcome, PoolBase)]
    assert winners == [log[0]]
    assert log[-1] == log[0]
    assert all(isinstance(outcome, BaseConflict) for outcome in losers) and len(losers) == len(digests) - 1


@pytest.mark.kafka
async def test_a_losers_record_left_behind_is_mended_by_the_next_worker(connection: Connection, producer: Producer, pool: str) -> None:
    """A loser killed between its record and its second look."""
    for digest in "ab":
        await producer.publish(contracts.BASE_MODELS, base_of(pool, digest), pool)
    await found_pool(connection, producer, base_of(pool, "a"))
    assert await written(connection, pool) == ["a", "b", "a"]
    with pytest.raises(BaseConflict):
        await found_pool(connection, producer, base_of(pool, "b"))
    assert await written(connection, pool) == ["a", "b", "a"]


@pytest.mark.kafka
async def test_another_rank_on_the_same_base_is_no_conflict_and_the_founders_holds(
    connection: Connection, producer: Producer, pool: str
) -> None:
    founder = await found_pool(connection, producer, base_of(pool, max_rank=8))
    assert founder.max_rank == 8
    assert await found_pool(connection, producer, base_of(pool, max_rank=64)) == founder
    assert await written(connection, pool) == ["a"]


@pytest.mark.kafka
async def test_an_unreadable_record_under_the_pools_key_founds_nothing(connection: Connection, producer: Producer, pool: str) -> None:
    await producer.publish_raw(Outgoing(contracts.BASE_MODELS.name(), pool.encode(), b"junk"))
    await found_pool(connection, producer, base_of(pool))
    assert await written(connection, pool) == ["a"]
