"""Header names that are not UTF-8: legal on the wire, fatal to aiokafka."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from mint_stream.bus.producer import Outgoing
from mint_stream.bus.table import LogReader
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.errors import InvalidRecord

pytestmark = pytest.mark.kafka


class RawName(str):
    """A header name that goes to the wire as bytes no decoder takes."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return b"bad\xff\xfe"


async def write_bad(connection, topic: str, partition: int = 0) -> None:
    """Three records in one batch; the middle one has the bad name."""
    writer = AIOKafkaProducer(**connection.options())
    await writer.start()
    batch = writer.create_batch()
    batch._builder = _DefaultRecordBatchBuilderPy(
        2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0, batch_size=1 << 20
    )
    batch.append(timestamp=None, key=b"k", value=b"before", headers=[("fine", b"\xff")])
    batch.append(timestamp=None, key=b"k", value=b"bad", headers=[(RawName("x"), b"\xff\x00"), ("n", None)])
    batch.append(timestamp=None, key=b"k", value=b"after", headers=[])
    await (await writer.send_batch(batch, topic, partition=partition))
    await writer.stop()


async def test_a_bad_header_name_is_delivered_and_dead_lettered_and_its_neighbours_are_worked_on(
    make_topic, make_intake, fill, producer, connection
):
    topic = await make_topic(3)
    await fill(topic, [b"%d" % number for number in range(30)], partitions=3)
    await write_bad(connection, topic, 1)
    await producer.publish_raw(Outgoing(topic, b"k", b"last", partition=1))
    intake = await make_intake(topic)
    async with asyncio.timeout(20):
        deliveries = [await anext(intake) for _ in range(34)]
    values = [delivery.value for delivery in deliveries if delivery.partition == 1]
    assert values == [b"%d" % number for number in range(1, 30, 3)] + [b"before", b"bad", b"after", b"last"]
    assert len({(delivery.partition, delivery.offset) for delivery in deliveries}) == 34
    (bad,) = (delivery for delivery in deliveries if delivery.value == b"bad")
    assert bad.headers == (("bad\\xff\\xfe", b"\xff\x00"), ("n", None))
    for delivery in deliveries:
        await (delivery.dead_letter(InvalidRecord("header")) if delivery is bad else delivery.close())
    assert await intake.commit()
    assert intake.open_records == 0
    dead = []
    reader = LogReader(connection, f"{topic}-dlq", lambda partition, records, offset: dead.extend(records))
    await reader.start()
    await reader.caught_up()
    await reader.stop()
    assert (dead[0].value, dead[0].headers[:2]) == (b"bad", bad.headers)


async def test_a_log_reader_goes_on_after_a_bad_header_name_and_still_hides_what_was_aborted(make_topic, producer, connection):
    topic = await make_topic()
    writer = TransactionalProducer(connection, f"tx-{topic}", "test")
    await writer.start()
    await writer.begin()
    await writer.send_raw(Outgoing(topic, b"k", b"aborted"))
    await writer.abort()
    await write_bad(connection, topic)
    await writer.begin()
    await writer.send_raw(Outgoing(topic, b"k", b"committed"))
    await writer.commit()
    await writer.stop()
    seen = []
    reader = LogReader(connection, topic, lambda partition, records, offset: seen.extend(record.value for record in records))
    await reader.start()
    async with asyncio.timeout(20):
        await reader.caught_up()
    await reader.stop()
    assert seen == [b"before", b"bad", b"after", b"committed"]
