"""All or nothing, by one owner at a time."""

import pytest
from aiokafka import TopicPartition

from mint_stream.bus.producer import Outgoing
from mint_stream.bus.table import LogReader
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.errors import OwnershipLost

pytestmark = pytest.mark.kafka


@pytest.fixture
async def owner(connection):
    """Start a producer under a transactional id."""
    made = []

    async def start(transactional_id: str) -> TransactionalProducer:
        producer = TransactionalProducer(connection, transactional_id, "test")
        made.append(producer)
        await producer.start()
        return producer

    yield start
    for producer in made:
        await producer.stop()


async def visible(connection, topic: str) -> list[bytes]:
    seen = []
    reader = LogReader(connection, topic, lambda partition, records, offset: seen.extend(record.value for record in records))
    await reader.start()
    await reader.caught_up()
    await reader.stop()
    return seen


async def test_records_and_offsets_of_a_commit_appear_together_and_say_where_they_stand(make_topic, owner, connection, admin):
    one, two = await make_topic(), await make_topic()
    producer = await owner(f"tx-{one}")
    await producer.begin()
    await producer.send_raw(Outgoing(one, b"k", b"revision"))
    await producer.send_raw(Outgoing(two, b"k", b"event"))
    await producer.send_raw(Outgoing(one, b"k", b"head"))
    await producer.send_offsets({(two, 0): 17}, f"group-{one}")
    assert await visible(connection, one) == []
    written = await producer.commit()
    assert [(position.topic, position.offset) for position in written] == [(one, 0), (two, 0), (one, 1)]
    assert await visible(connection, one) == [b"revision", b"head"]
    assert await visible(connection, two) == [b"event"]
    committed = await admin.list_consumer_group_offsets(f"group-{one}")
    assert committed[TopicPartition(two, 0)].offset == 17


async def test_what_was_aborted_is_never_seen_and_the_next_transaction_works(make_topic, owner, connection):
    topic = await make_topic()
    producer = await owner(f"tx-{topic}")
    await producer.begin()
    await producer.send_raw(Outgoing(topic, b"k", b"aborted"))
    await producer.abort()
    await producer.begin()
    await producer.send_raw(Outgoing(topic, b"k", b"kept"))
    await producer.commit()
    assert await visible(connection, topic) == [b"kept"]


async def test_a_new_owner_fences_the_old_one_in_the_middle_of_its_transaction(make_topic, owner, connection):
    topic = await make_topic()
    old = await owner(f"tx-{topic}")
    await old.begin()
    await (await old.send_raw(Outgoing(topic, b"k", b"old")))
    new = await owner(f"tx-{topic}")
    with pytest.raises(OwnershipLost, match=f"tx-{topic}"):
        await old.commit()
    with pytest.raises(OwnershipLost):
        await old.begin()
    await new.begin()
    await new.send_raw(Outgoing(topic, b"k", b"new"))
    await new.commit()
    assert await visible(connection, topic) == [b"new"]


async def test_an_idle_old_owner_notices_at_its_next_write(make_topic, owner, connection):
    topic = await make_topic()
    old = await owner(f"tx-{topic}")
    await owner(f"tx-{topic}")
    with pytest.raises(OwnershipLost):
        await write(old, topic)
    assert await visible(connection, topic) == []


async def write(producer: TransactionalProducer, topic: str) -> None:
    await producer.begin()
    await producer.send_raw(Outgoing(topic, b"k", b"v"))
    await producer.commit()
