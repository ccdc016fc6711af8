"""The intake against a real broker: completion in any order, crashes, rebalances, bounds, dead letters."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import IllegalStateError

from mint_stream.bus.commit_metadata import decode_metadata, encode_metadata
from mint_stream.bus.handover import committed_offsets
from mint_stream.bus.offsets import WINDOW, Progress, fresh
from mint_stream.bus.producer import Outgoing
from mint_stream.bus.table import LogReader
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.errors import InvalidRecord

pytestmark = pytest.mark.kafka


async def take(intake, count: int) -> list:
    async with asyncio.timeout(20):
        return [await anext(intake) for _ in range(count)]


async def crash(intake) -> None:
    """The member vanishes from its process's point of view: nothing more is committed."""
    for task in list(intake._tasks):
        task.cancel()
    await asyncio.gather(*intake._tasks, return_exceptions=True)
    intake._tenancy._tenures.clear()
    await intake._disconnect()


async def progress_of(admin, topic: str, partition: int = 0, group: str = ""):
    key = TopicPartition(topic, partition)
    committed = (await admin.list_consumer_group_offsets(group or topic, partitions=[key]))[key]
    return decode_metadata(committed.offset, committed.metadata)


async def eventually(intake, condition) -> None:
    async with asyncio.timeout(20):
        await intake.until(condition)


async def test_after_a_crash_exactly_the_open_records_come_again(make_topic, fill, make_intake, admin):
    topic = await make_topic()
    await fill(topic, [b"v"] * 10)
    first = await make_intake(topic)
    deliveries = await take(first, 8)
    for index in (7, 1, 2, 5):
        await deliveries[index].close()
    assert await first.commit()
    await crash(first)
    second = await make_intake(topic)
    again = await take(second, 6)
    assert [delivery.offset for delivery in again] == [0, 3, 4, 6, 8, 9]
    assert {delivery.attempt for delivery in again} == {deliveries[0].attempt + 1}
    for delivery in again:
        await delivery.close()
    assert await second.commit()
    assert (await progress_of(admin, topic)).next_offset == 10


async def test_records_closed_together_are_replaced_by_one_look_at_the_partitions(make_topic, fill, make_intake, monkeypatch):
    topic = await make_topic(4)
    await fill(topic, [b"v"] * 60, 4)
    intake = await make_intake(topic, max_records=12)
    first = await take(intake, 12)
    looks: list[int] = []
    look = intake._outlet.pump
    monkeypatch.setattr(intake._outlet, "pump", lambda: looks.append(1) or look())
    for delivery in first:
        await delivery.close()
    assert looks == [], "each would look at all of them"
    again = await take(intake, 12)
    assert looks and not {(one.partition, one.offset) for one in again} & {(one.partition, one.offset) for one in first}


async def test_a_record_is_not_committed_before_it_is_closed(make_topic, fill, make_intake, admin):
    topic = await make_topic()
    await fill(topic, [b"v"] * 3)
    intake = await make_intake(topic)
    zero, one, two = await take(intake, 3)
    await two.close()
    await one.close()
    await intake.commit()
    found = await progress_of(admin, topic)
    assert (found.next_offset, found.open) == (0, (0,))
    await zero.close()
    await intake.commit()
    assert (await progress_of(admin, topic)).next_offset == 3


async def test_partitions_that_stay_keep_their_work_and_those_that_leave_become_stale(make_topic, fill, make_intake, admin):
    topic = await make_topic(4)
    await fill(topic, [b"v"] * 20, partitions=4)
    first = await make_intake(topic)
    mine = await take(first, 20)
    second = await make_intake(topic)
    await eventually(first, lambda: len(first.assigned) == 2)
    await eventually(second, lambda: len(second.assigned) == 2)
    assert first.assigned.isdisjoint(second.assigned)
    kept = [delivery for delivery in mine if (topic, delivery.partition) in first.assigned]
    lost = [delivery for delivery in mine if (topic, delivery.partition) in second.assigned]
    assert not any(delivery.stale for delivery in kept)
    assert all(delivery.stale for delivery in lost)
    theirs = await take(second, 10)
    assert {(one.partition, one.offset) for one in theirs} == {(one.partition, one.offset) for one in lost}
    assert min(one.attempt for one in theirs) > max(one.attempt for one in lost)
    for delivery in lost:
        await delivery.close()
        await delivery.dead_letter(InvalidRecord("never written"))
    assert await second.commit()
    for delivery in lost:
        assert delivery.offset in (await progress_of(admin, topic, delivery.partition)).open
    await fill(topic, [b"new"] * 4, partitions=4)
    assert {delivery.value for delivery in await take(first, 2)} == {b"new"}
    for delivery in kept:
        await delivery.close()
    assert await first.commit()
    assert (await progress_of(admin, topic, kept[0].partition)).next_offset == 5


async def test_members_coming_and_going_under_load_lose_nothing(make_topic, fill, make_intake):
    topic = await make_topic(4)
    total, closed = 2000, set()

    async def work(intake) -> None:
        async for delivery in intake:
            await asyncio.sleep(0)
            if not delivery.stale:
                closed.add((delivery.partition, delivery.offset))
                await delivery.close()

    first = await make_intake(topic)
    workers = [asyncio.create_task(work(first))]
    written = set(await fill(topic, [b"v"] * (total // 2), partitions=4))
    second = await make_intake(topic)
    workers.append(asyncio.create_task(work(second)))
    written |= set(await fill(topic, [b"v"] * (total // 2), partitions=4))
    assert await first.drain(10) == 0
    await first.stop()
    await eventually(second, lambda: closed >= written)
    await second.stop()
    await asyncio.gather(*workers)
    assert closed == written


async def test_what_is_held_stays_within_the_bound_in_records(make_topic, fill, make_intake):
    topic = await make_topic(2)
    await fill(topic, [b"v"] * 60, partitions=2)
    intake = await make_intake(topic, max_records=10)
    for _ in range(6):
        held = await take(intake, 10)
        assert intake.open_records == intake._outlet.held_records == 10
        assert intake._queue.empty()
        for delivery in held:
            await delivery.close()
            assert intake._outlet.held_records <= 10
    assert intake.open_records == 0


async def test_what_is_in_work_stays_within_the_bound_in_bytes_and_a_larger_record_passes_alone(make_topic, fill, make_intake):
    topic = await make_topic()
    await fill(topic, [b"x" * 40_000] * 6 + [b"y" * 300_000] + [b"x" * 40_000])
    intake = await make_intake(topic, max_bytes=100_000)
    two = await take(intake, 2)
    assert intake._queue.empty()
    assert intake.open_records == 2
    for delivery in two:
        await delivery.close()
    await take_and_close(intake, 4)
    large = (await take(intake, 1))[0]
    assert large.size_bytes > 300_000
    assert intake.open_records == 1
    await large.close()
    assert (await take(intake, 1))[0].offset == 7


async def take_and_close(intake, count: int) -> list:
    taken = []
    for _ in range(count):
        delivery = (await take(intake, 1))[0]
        await delivery.close()
        taken.append(delivery)
    return taken


async def test_one_open_record_holds_back_only_what_lies_a_window_further(make_topic, fill, make_intake, admin):
    topic = await make_topic()
    await fill(topic, [b"v"] * (WINDOW + 20))
    intake = await make_intake(topic)
    slow = (await take(intake, 1))[0]
    await take_and_close(intake, WINDOW - 1)
    assert intake.open_records == 1
    assert intake._queue.empty()
    assert await intake.commit()
    found = await progress_of(admin, topic)
    assert (found.next_offset, found.position, found.open) == (0, WINDOW, (0,))
    await slow.close()
    assert [delivery.offset for delivery in await take_and_close(intake, 20)] == list(range(WINDOW, WINDOW + 20))


async def test_draining_waits_for_what_is_in_work_and_leaves_the_rest_to_the_next(make_topic, fill, make_intake):
    topic = await make_topic()
    await fill(topic, [b"v"] * 6)
    first = await make_intake(topic)
    working = await take(first, 2)
    draining = asyncio.create_task(first.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await anext(first)
    assert not draining.done()
    for delivery in working:
        await delivery.close()
    assert await draining == 0
    await first.stop()
    second = await make_intake(topic)
    assert [delivery.offset for delivery in await take(second, 4)] == [2, 3, 4, 5]


async def test_a_drain_that_ends_too_early_says_how_much_is_open(make_topic, fill, make_intake):
    topic = await make_topic()
    await fill(topic, [b"v"])
    intake = await make_intake(topic)
    await take(intake, 1)
    assert await intake.drain(0.05) == 1


async def test_a_dead_letter_is_the_original_record_and_the_reason(make_topic, producer, make_intake, connection):
    topic = await make_topic()
    odd = (("trace", b"\xff\xfe bad utf-8"), ("none", None), ("trace", b"again"))
    await producer.publish_raw(Outgoing(topic, b"\x00key", b"\xffnot json", odd))
    await producer.publish_raw(Outgoing(topic, b"k", None))
    await producer.publish_raw(Outgoing(topic, None, None, (("h", b"1"),)))
    await producer.publish_raw(Outgoing(topic, b"k", b"good"))
    intake = await make_intake(topic)
    deliveries = await take(intake, 4)
    for delivery in deliveries[:3]:
        await delivery.dead_letter(InvalidRecord("not a request"))
    await deliveries[3].close()
    found = []
    reader = LogReader(connection, f"{topic}-dlq", lambda partition, records, offset: found.extend(records))
    await reader.start()
    await reader.caught_up()
    await reader.stop()
    assert [(record.key, record.value) for record in found] == [(b"\x00key", b"\xffnot json"), (b"k", None), (None, None)]
    assert found[0].headers[:3] == odd
    why = dict(found[0].headers[3:])
    assert why["mint_error_code"] == b"invalid-record"
    assert why["mint_error_message"] == b"not a request"
    assert (why["mint_origin_topic"], why["mint_origin_partition"], why["mint_origin_offset"]) == (topic.encode(), b"0", b"0")
    assert int(why["mint_origin_timestamp_ms"]) == deliveries[0].timestamp_ms
    assert intake.open_records == 0


async def test_markers_of_transactions_are_no_lag(make_topic, make_intake, connection, admin):
    topic = await make_topic()
    writer = TransactionalProducer(connection, f"tx-{topic}", "test")
    await writer.start()
    for commit in (True, False, True):
        await writer.begin()
        await writer.send_raw(Outgoing(topic, b"k", b"v"))
        await (writer.commit() if commit else writer.abort())
    await writer.stop()
    intake = await make_intake(topic)
    assert [delivery.offset for delivery in await take_and_close(intake, 2)] == [0, 4]
    await eventually(intake, lambda: intake._tenancy.all()[0].tracker.next_offset == 6)
    await intake.commit()
    assert (await progress_of(admin, topic)).next_offset == 6


async def leave_behind(connection, topic: str, progress: Progress) -> None:
    """What an owner that vanished had committed last."""
    consumer = AIOKafkaConsumer(group_id=topic, enable_auto_commit=False, **connection.options())
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    await consumer.commit({partition: (progress.next_offset, encode_metadata(progress))})
    await consumer.stop()


async def test_after_k_takeovers_the_suspects_run_one_at_a_time_each_named_in_a_commit_first(
    make_topic, fill, make_intake, admin, connection
):
    topic = await make_topic()
    await fill(topic, [b"v"] * 12)
    left = Progress(next_offset=2, position=6, open=(2, 4, 5), high=5, until=6, takeovers=2, tenure=7)
    await leave_behind(connection, topic, left)
    intake = await make_intake(topic, takeovers_before_suspect=3)
    for offset in (2, 4):
        (suspect,) = await take(intake, 1)
        assert (suspect.offset, suspect.attempt) == (offset, 8)
        assert intake._queue.empty()
        assert intake.open_records == 1
        found = await progress_of(admin, topic)
        assert (found.trying, found.takeovers, found.released) == (offset, 3, False)
        await suspect.close()
    rest = await take(intake, 7)
    assert [delivery.offset for delivery in rest] == [5, 6, 7, 8, 9, 10, 11]
    for delivery in rest:
        await delivery.close()
    assert await intake.commit()
    assert (await progress_of(admin, topic)).takeovers == 0


async def test_the_condemned_record_is_answered_for_dead_lettered_and_closed(make_topic, fill, make_intake, admin, connection):
    topic = await make_topic()
    await fill(topic, [b"v"] * 4)
    await leave_behind(
        connection, topic, Progress(next_offset=1, position=3, open=(1, 2), high=2, until=3, takeovers=3, trying=1, tenure=9)
    )
    intake = await make_intake(topic)
    answered = []

    async def answer(delivery, error) -> None:
        answered.append((delivery.offset, error.code))

    intake.on_condemned = answer
    assert [delivery.offset for delivery in await take_and_close(intake, 2)] == [2, 3]
    await eventually(intake, lambda: intake.open_records == 0)
    assert answered == [(1, "poison-record")]
    await intake.commit()
    found = await progress_of(admin, topic)
    assert (found.next_offset, found.takeovers, found.condemned) == (4, 0, None)
    assert (await end_of(connection, f"{topic}-dlq")) == 1


async def end_of(connection, topic: str) -> int:
    reader = LogReader(connection, topic, lambda *_: None)
    await reader.start()
    await reader.caught_up()
    await reader.stop()
    return reader.positions[0]


async def test_offsets_reset_by_hand_are_followed(make_topic, fill, make_intake, connection):
    topic = await make_topic()
    await fill(topic, [b"v"] * 5)
    consumer = AIOKafkaConsumer(group_id=topic, enable_auto_commit=False, **connection.options())
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.commit({TopicPartition(topic, 0): 3})
    await consumer.stop()
    intake = await make_intake(topic)
    assert [delivery.offset for delivery in await take(intake, 2)] == [3, 4]


async def test_a_broker_names_what_a_group_never_committed(make_topic, admin, connection):
    """That is what tells "never" from "cannot say now", which names no partition."""
    topic = await make_topic(2)
    await leave_behind(connection, topic, fresh(3))
    partitions = [TopicPartition(topic, number) for number in range(2)]
    for group, offsets in ((topic, [3, -1]), (f"{topic}-of-nobody", [-1, -1])):
        found = await committed_offsets(admin, group, partitions)
        assert [found[partition].offset for partition in partitions] == offsets


class Taken:
    """A consumer that a rebalance takes a partition from just when its position is asked for."""

    def __init__(self, consumer) -> None:
        self._consumer = consumer
        self.asked = 0

    def __getattr__(self, name: str):
        return getattr(self._consumer, name)

    async def position(self, partition) -> int:
        self.asked += 1
        if self.asked == 1:
            raise IllegalStateError(f"Partition {partition} is not assigned")
        return await self._consumer.position(partition)


async def test_a_position_asked_for_in_a_rebalance_does_not_end_the_intake(make_topic, fill, make_intake):
    topic = await make_topic()
    intake = await make_intake(topic)
    intake._consumer = taken = Taken(intake._consumer)
    await eventually(intake, lambda: bool(intake.assigned))
    async with asyncio.timeout(20):
        while not taken.asked:
            await asyncio.sleep(0)
    await fill(topic, [b"v"])
    assert [delivery.value for delivery in await take(intake, 1)] == [b"v"]


async def test_a_worker_that_ends_because_of_its_work_is_counted_by_its_successor(make_topic, fill, make_intake, admin):
    topic = await make_topic()
    await fill(topic, [b"v"])
    for takeovers in (0, 1, 2):
        intake = await make_intake(topic)
        await take(intake, 1)
        assert (await progress_of(admin, topic)).takeovers == takeovers
        await intake.stop(failed=True)


async def test_a_member_that_was_expelled_starts_anew_and_its_old_work_is_stale(make_topic, fill, make_intake):
    topic = await make_topic()
    await fill(topic, [b"v"] * 3)
    intake = await make_intake(topic)
    old = await take(intake, 3)
    intake._consumer._coordinator.reset_generation()
    await eventually(intake, lambda: not intake.assigned)
    assert all(delivery.stale for delivery in old)
    assert intake.open_records == 0
    again = await take(intake, 3)
    assert [delivery.offset for delivery in again] == [0, 1, 2]
    assert again[0].attempt == old[0].attempt + 1
    await old[0].close()
    assert intake.open_records == 3


@pytest.mark.parametrize("missed", [0, 1])
async def test_a_tenure_lasts_over_consecutive_generations_and_ends_when_one_was_missed(make_topic, fill, make_intake, missed):
    topic = await make_topic()
    await fill(topic, [b"v"] * 2)
    intake = await make_intake(topic)
    old = await take(intake, 2)
    intake._tenancy._generation -= missed
    intake._consumer._coordinator.request_rejoin()
    await eventually(intake, lambda: not intake.assigned)
    await eventually(intake, lambda: bool(intake.assigned))
    assert [delivery.stale for delivery in old] == [bool(missed)] * 2
    assert intake.open_records == (0 if missed else 2)
