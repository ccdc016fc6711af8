"""Writing records: headers, limits, and the cure of a stuck producer."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.producer.message_accumulator import MessageBatch

from mint_stream.bus.events import header
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogReader
from mint_stream.contracts import INFERENCE_REQUESTS
from mint_stream.errors import BusUnavailable, InvalidRequest
from mint_stream.messages.inference import Cancellation

pytestmark = pytest.mark.kafka

RECORD = Cancellation(request_id="r", cancelled_at_ms=0)


async def read(connection, topic: str) -> list:
    seen = []
    reader = LogReader(connection, topic, lambda partition, records, offset: seen.extend(records))
    await reader.start()
    await reader.caught_up()
    await reader.stop()
    return seen


async def test_a_published_record_says_where_it_stands_and_carries_its_headers(make_topic, producer, connection):
    topic = await make_topic(2)
    position = await producer.publish(topic, RECORD, "key", partition=1, headers=[("mine", b"1")])
    assert (position.topic, position.partition, position.offset) == (topic, 1, 0)
    (record,) = await read(connection, topic)
    assert (record.key, Cancellation.decode(record.value)) == (b"key", RECORD)
    assert header(record.headers, "ce_type") == b"mint.Cancellation"
    assert header(record.headers, "ce_source") == b"test"
    assert header(record.headers, "traceparent").startswith(b"00-")
    assert header(record.headers, "mine") == b"1"


async def test_pipelined_records_keep_their_order(make_topic, producer, connection):
    topic = await make_topic()
    sent = [await producer.send_raw(Outgoing(topic, b"k", b"%d" % number)) for number in range(500)]
    assert [position.offset for position in await asyncio.gather(*sent)] == list(range(500))
    assert [record.value for record in await read(connection, topic)] == [b"%d" % number for number in range(500)]


async def test_records_sent_at_once_do_not_wait_for_each_others_batches(make_topic, producer, monkeypatch):
    waits: list[int] = []
    wait = MessageBatch.wait_drain
    monkeypatch.setattr(MessageBatch, "wait_drain", lambda *about, **named: waits.append(1) or wait(*about, **named))
    topic = await make_topic()
    records = [Outgoing(topic, b"%d" % number, b"x" * 1000) for number in range(200)]
    positions = await asyncio.gather(*(producer.publish_raw(record) for record in records))
    assert [position.offset for position in positions] == list(range(200))
    assert waits == []


async def test_a_record_over_the_topics_limit_is_refused_before_it_is_sent(producer):
    small = INFERENCE_REQUESTS.model_copy(update={"config": {"max.message.bytes": "400"}})
    with pytest.raises(InvalidRequest, match="over the 400 bytes"):
        await producer.publish(small, RECORD.model_copy(update={"reason": "x" * 400}), "k", pool="never-created")


async def test_a_record_the_broker_finds_too_large_is_refused_too_and_the_producer_goes_on(make_topic, producer):
    topic = await make_topic(1, max_message_bytes="1000")
    with pytest.raises(InvalidRequest, match="too large"):
        await producer.publish_raw(Outgoing(topic, b"k", b"x" * 2000))
    assert (await producer.publish_raw(Outgoing(topic, b"k", b"small"))).offset == 0


async def test_a_partition_that_does_not_exist_is_refused(make_topic, producer):
    with pytest.raises(InvalidRequest, match="no partition 9"):
        await producer.publish_raw(Outgoing(await make_topic(), b"k", b"v", partition=9))


async def test_a_stuck_producer_replaces_itself_and_sends_again(make_topic, connection):
    topic = await make_topic()
    producer = Producer(connection, "test")
    await producer.start()
    await producer.publish_raw(Outgoing(topic, b"k", b"first"))
    producer._current._txn_manager.increment_sequence_number(TopicPartition(topic, 0), 7)
    sent = [await producer.send_raw(Outgoing(topic, b"k", b"%d" % number)) for number in range(20)]
    await asyncio.gather(*sent)
    assert producer.rebuilds == 1
    await producer.publish_raw(Outgoing(topic, b"k", b"last"))
    await producer.stop()
    values = [record.value for record in await read(connection, topic)]
    assert (values[0], values[-1]) == (b"first", b"last")
    assert sorted(values[1:-1]) == sorted(b"%d" % number for number in range(20))


async def test_a_broker_that_does_not_answer_is_named(connection):
    nowhere = Producer(type(connection)("127.0.0.1:1"), "test")
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1"):
        await nowhere.start()
    with pytest.raises(BusUnavailable, match="not running"):
        await nowhere.publish_raw(Outgoing("t", b"k", b"v"))
