"""The log reader's barrier."""

import asyncio

import pytest
from aiokafka import TopicPartition

from mint_stream.bus.liveness import Liveness
from mint_stream.bus.producer import Outgoing
from mint_stream.bus.table import LogReader
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.errors import BusUnavailable, TopicMismatch

pytestmark = pytest.mark.kafka


@pytest.fixture
async def read(connection):
    """Start a reader that collects; gives it and what it saw."""
    readers = []

    async def start(topic: str, *args, **options):
        seen = []
        reader = LogReader(
            connection, topic, lambda partition, records, offset: seen.extend((partition, r.value) for r in records), *args, **options
        )
        await reader.start()
        readers.append(reader)
        return reader, seen

    yield start
    for reader in readers:
        await reader.stop()


async def test_the_barrier_sees_everything_written_before_it(make_topic, fill, read):
    topic = await make_topic(3)
    reader, seen = await read(topic)
    await fill(topic, [b"%d" % number for number in range(100)], partitions=3)
    async with asyncio.timeout(10):
        await reader.caught_up()
    assert sorted(int(value) for _, value in seen) == list(range(100))
    assert [int(value) for partition, value in seen if partition == 0] == list(range(0, 100, 3))


async def test_an_empty_topic_is_caught_up_at_once(make_topic, read):
    reader, seen = await read(await make_topic(2))
    async with asyncio.timeout(10):
        await reader.caught_up()
    assert seen == []


async def test_the_barrier_passes_over_markers_and_aborted_records(make_topic, read, connection):
    topic = await make_topic()
    reader, seen = await read(topic)
    writer = TransactionalProducer(connection, f"tx-{topic}", "test")
    await writer.start()
    for value, commits in ((b"a", True), (b"b", False), (b"c", False)):
        await writer.begin()
        await writer.send_raw(Outgoing(topic, b"k", value))
        await (writer.commit() if commits else writer.abort())
    await writer.stop()
    async with asyncio.timeout(10):
        await reader.caught_up()
    assert seen == [(0, b"a")]
    assert reader.positions == {0: 6}


async def test_the_barrier_does_not_wait_for_an_open_transaction(make_topic, read, connection, fill):
    topic = await make_topic()
    await fill(topic, [b"before"])
    writer = TransactionalProducer(connection, f"tx-{topic}", "test")
    await writer.start()
    await writer.begin()
    await (await writer.send_raw(Outgoing(topic, b"k", b"open")))
    reader, seen = await read(topic)
    async with asyncio.timeout(10):
        await reader.caught_up()
    assert seen == [(0, b"before")]
    await writer.commit()
    async with asyncio.timeout(10):
        await reader.caught_up()
    assert seen == [(0, b"before"), (0, b"open")]
    await writer.stop()


async def test_a_reader_begins_where_it_is_told(make_topic, fill, read):
    topic = await make_topic(2)
    await fill(topic, [b"%d" % number for number in range(8)], partitions=2)
    reader, seen = await read(topic, {0: 3}, [0])
    late, after = await read(topic, "latest")
    await reader.caught_up()
    assert seen == [(0, b"6")]
    await fill(topic, [b"new"], partitions=1)
    await late.caught_up()
    assert after == [(0, b"new")]


async def test_a_failing_apply_ends_the_reader_and_the_barrier_raises_it(make_topic, fill, connection):
    topic = await make_topic()

    def refuse(partition, records, offset):
        raise ValueError("cannot apply")

    reader = LogReader(connection, topic, refuse)
    await reader.start()
    await fill(topic, [b"v"])
    with pytest.raises(ValueError, match="cannot apply"):
        await reader.run_until_failed()
    with pytest.raises(ValueError, match="cannot apply"):
        await reader.caught_up()
    assert isinstance(reader.failed, ValueError)
    await reader.stop()


async def test_a_reader_that_stands_still_before_records_ends(make_topic, fill, read):
    topic = await make_topic()
    await fill(topic, [b"read"])
    reader, seen = await read(topic, stuck_after_s=0.2)
    await reader.caught_up()
    reader._consumer.pause(TopicPartition(topic, 0))
    await fill(topic, [b"never read"])
    async with asyncio.timeout(20):
        with pytest.raises(BusUnavailable, match="has records to fetch and has not moved"):
            await reader.run_until_failed()
    assert seen == [(0, b"read")]
    with pytest.raises(BusUnavailable, match="has not moved"):
        await reader.caught_up()


async def test_a_reader_that_is_held_is_not_stuck_and_goes_on_where_it_was(make_topic, fill, read):
    topic = await make_topic()
    reader, seen = await read(topic, stuck_after_s=0.2)
    reader.hold()
    await fill(topic, [b"%d" % number for number in range(5)])
    looks = Liveness(reader._consumer, 60.0, reader._moving)
    for now_s in (0.0, 61.0, 122.0):
        await looks.look(now_s)
    assert reader.failed is None
    reader.go_on()
    async with asyncio.timeout(20):
        await reader.caught_up()
    assert [int(value) for _, value in seen] == list(range(5))


async def test_a_partition_that_does_not_exist_is_refused(make_topic, connection):
    reader = LogReader(connection, await make_topic(2), lambda *_: None, "latest", [7])
    with pytest.raises(TopicMismatch, match="partition 7"):
        await reader.start()


async def test_the_barrier_passes_over_the_holes_of_compaction(make_topic, fill, read, producer):
    settings = {"cleanup_policy": "compact", "segment_ms": "1", "min_cleanable_dirty_ratio": "0.01", "max_compaction_lag_ms": "1"}
    topic = await make_topic(1, **settings)
    for number in range(30):
        await producer.publish_raw(Outgoing(topic, b"same", b"%d" % number))
    count = 31
    async with asyncio.timeout(40):
        while count >= 30:
            reader, seen = await read(topic)
            await reader.caught_up()
            count = len(seen)
            await reader.stop()
    assert seen[-1] == (0, b"29")
    assert reader.positions[0] >= 30
