"""Nothing waits for ever: a consumer that has stopped fetching is noticed, a producer whose broker is gone closes."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.liveness import Liveness
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.producer import CLOSE_S, Outgoing, Producer
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.contracts import TRAINING_CONTROLS
from mint_stream.errors import BusUnavailable

pytestmark = pytest.mark.kafka


async def test_a_partition_is_stuck_only_when_it_was_behind_for_so_long(connection, make_topic, fill):
    partition = TopicPartition(await make_topic(), 0)
    consumer = AIOKafkaConsumer(**connection.options())
    await consumer.start()
    try:
        consumer.assign([partition])
        consumer.pause(partition)
        liveness = Liveness(consumer, 60.0, lambda: [partition])
        await liveness.look(0.0)
        await fill(partition.topic, [b"the first after a long silence"])
        await liveness.look(1000.0)
        await liveness.look(1059.0)
        with pytest.raises(BusUnavailable, match="has not moved for 60 s"):
            await liveness.look(1060.0)
    finally:
        await consumer.stop()


@pytest.mark.timeout(60)
@pytest.mark.long
async def test_a_producer_whose_broker_is_gone_closes_in_bounded_time(kafka_dir):
    with LocalKafka(kafka_dir) as broker:
        connection = Connection(broker.bootstrap_servers)
        await provision.apply(connection, [TRAINING_CONTROLS.model_copy(update={"name_pattern": "kept", "partitions": 1})])
        plain, owner = Producer(connection, "test"), TransactionalProducer(connection, "owner", "test", timeout_s=3)
        await plain.start()
        await plain.publish_raw(Outgoing("kept", b"k", b"v"))
        await owner.start()
        await owner.begin()
        await owner.acknowledged(await owner.send_raw(Outgoing("kept", b"k", b"v")))
        broker.kill()
        sent = [await plain.send_raw(Outgoing("kept", b"k", b"v")), await owner.send_raw(Outgoing("kept", b"k", b"v"))]
        with pytest.raises(BusUnavailable, match="did not go on in 3 s"):
            await owner.commit()
        async with asyncio.timeout(3 * CLOSE_S):
            await asyncio.gather(plain.stop(), owner.stop())
        with pytest.raises(BusUnavailable):
            await sent[0]
