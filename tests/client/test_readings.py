"""What a client reads: a job's life, adapter events, the catalog, the pool's base."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from mint_stream import contracts
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.client import Client
from mint_stream.client.feed import FULL_VALUES, Feed, Place
from mint_stream.errors import BaseUnusable, UnknownAdapter
from mint_stream.messages.adapters import Head, Revision, RevisionAnnounced, RuleSet, head_key, revision_key
from mint_stream.messages.training import Hyperparameters, TrainingControl, TrainingEvent, TrainingJob
from tests.adapter_commands import BASE
from tests.conftest import FreshTopic

pytestmark = pytest.mark.kafka


@pytest.fixture
async def producer(fleet: Connection) -> AsyncIterator[Producer]:
    producer = Producer(fleet, source="test")
    await producer.start()
    yield producer
    await producer.stop()


def training(job_id: str, state: str, **fields) -> TrainingEvent:
    about = {"adapter_id": "a", "tenant": "t", "worker_id": "w", "steps": 10, "at_ms": 1}
    return TrainingEvent(job_id=job_id, state=state, **{**about, **fields})


async def say(producer: Producer, *events: TrainingEvent) -> None:
    for event in events:
        await producer.publish(contracts.TRAINING_EVENTS, event, event.job_id)


async def test_watching_replays_a_job_from_its_start_to_its_end(client: Client, producer: Producer, unique: str):
    mine = [training(unique, "claimed"), training(unique, "running", step=5, loss=0.5), training(unique, "succeeded", step=10, number=2)]
    await say(producer, training(f"{unique}-other", "claimed"), mine[0], mine[1], training(unique, "running", heartbeat=True), mine[2])
    assert [event async for event in client.watch(unique)] == mine
    with_heartbeats = [event async for event in client.watch(unique, heartbeats=True)]
    assert [event.heartbeat for event in with_heartbeats] == [False, False, True, False]


async def test_the_end_that_an_older_attempt_tells_is_no_end(client: Client, producer: Producer, unique: str):
    """It had lost the job, and did not know it yet."""
    mine = [training(unique, "running", attempt=1), training(unique, "running", attempt=2)]
    await say(producer, *mine, training(unique, "failed", attempt=1))
    await client.pause_job(unique)
    await say(producer, end := training(unique, "succeeded", attempt=2))
    assert [event async for event in client.watch(unique)] == [*mine, end]


async def test_watching_goes_on_with_what_is_said_later(client: Client, producer: Producer, unique: str):
    events = client.watch(unique)
    await say(producer, training(unique, "claimed"))
    assert (await anext(events)).state == "claimed"
    waiting = asyncio.create_task(anext(events))
    await say(producer, training(unique, "failed"))
    assert (await waiting).state == "failed"
    assert [event async for event in events] == []


async def test_a_closed_watch_ends_for_whoever_waits(client: Client, unique: str):
    events = client.watch(unique)
    waiting = asyncio.create_task(anext(events, None))
    await events.start()
    await events.aclose()
    assert await waiting is None


async def test_a_stopped_client_ends_its_feeds(fleet: Connection, unique: str):
    async with Client(fleet, "tiny") as client:
        events = client.watch(unique)
        await events.start()
    assert events.closed and [event async for event in events] == []


async def test_jobs_are_listed_by_their_latest_event(client: Client, producer: Producer, unique: str):
    await say(producer, training(unique, "claimed", at_ms=5), training(unique, "running", step=3, at_ms=6))
    assert [(event.state, event.step) for event in await client.jobs() if event.job_id == unique] == [("running", 3)]


async def test_a_job_and_its_cancellation_are_records_under_their_keys(client: Client, producer: Producer, unique: str):
    job = TrainingJob(
        job_id=unique, adapter_id=unique, dataset_uri="file:///x", hyperparameters=Hyperparameters(steps=1), submitted_at_ms=1
    )
    jobs = reader_of(client, contracts.TRAINING_JOBS.name("tiny"), lambda record: (record.key, TrainingJob.decode(record.value)))
    controls = reader_of(client, contracts.TRAINING_CONTROLS.name(), lambda record: (record.key, TrainingControl.decode(record.value)))
    async with jobs, controls:
        assert await client.train(job) == unique
        await client.cancel_job(unique, "no more")
        assert await anext(jobs) == (unique.encode(), job)
        key, control = await anext(controls)
    assert key == unique.encode() and (control.job_id, control.action, control.reason) == (unique, "cancel", "no more")


def reader_of(client: Client, topic: str, decode):
    return Feed(client._partitions, Place(topic, since="latest"), decode)


def announced(adapter_id: str, number: int, at_ms: int = 1) -> RevisionAnnounced:
    return RevisionAnnounced(command_id="c", adapter_id=adapter_id, at_ms=at_ms, number=number, digest="a" * 64, pool="tiny")


async def tell(producer: Producer, *events: RevisionAnnounced | RuleSet) -> None:
    for event in events:
        await producer.publish(contracts.ADAPTER_EVENTS, event, event.adapter_id)


async def test_revisions_are_told_as_they_happen_and_those_before_are_not(client: Client, producer: Producer, unique: str):
    await tell(producer, announced(unique, 1))
    async with client.revisions(unique) as events:
        await tell(producer, announced(f"{unique}x", 1), announced(unique, 2))
        assert await anext(events) == announced(unique, 2)


async def test_revisions_since_the_beginning_have_the_whole_history(client: Client, producer: Producer, unique: str):
    rule = RuleSet(command_id="c", adapter_id=unique, at_ms=2, rule="manual")
    await tell(producer, announced(unique, 1), rule, announced(unique, 2))
    events = client.revisions(unique, since="earliest")
    assert [await anext(events) for _ in range(3)] == [announced(unique, 1), rule, announced(unique, 2)]
    await events.aclose()


async def test_revisions_since_a_moment_begin_there(client: Client, producer: Producer, unique: str):
    await tell(producer, announced(unique, 1))
    position = await producer.publish(contracts.ADAPTER_EVENTS, announced(unique, 2), unique)
    moment = await timestamp_of(client, position.topic, position.partition, position.offset)
    await tell(producer, announced(unique, 3))
    events = client.revisions(unique, since=moment)
    seen = [await anext(events)]
    while seen[-1].number != 3:
        seen.append(await anext(events))
    await events.aclose()
    assert [event.number for event in seen][-2:] == [2, 3]
    later = client.revisions(since=moment + 3_600_000)
    await later.start()
    await tell(producer, announced(unique, 4))
    assert await anext(later) == announced(unique, 4)
    await later.aclose()


async def timestamp_of(client: Client, topic: str, partition: int, offset: int) -> int:
    async with Feed(client._partitions, Place(topic, offsets={partition: offset}), lambda record: record.timestamp_ms) as times:
        return await anext(times)


async def test_a_feed_that_nobody_iterates_holds_a_part_of_the_log_and_yields_all_of_it(
    client: Client, producer: Producer, fresh_topic: FreshTopic
):
    """4 MB of values of 1 kB: several fetches, and more than may wait."""
    topic, count = await fresh_topic(), 4 * FULL_VALUES
    sent = [await producer.send_raw(Outgoing(topic, b"k", b"%1000d" % number)) for number in range(count)]
    await asyncio.gather(*sent)
    feed = Feed(client._partitions, Place(topic), lambda record: int(record.value or b""))
    await feed.start()
    assert feed._reader is not None
    while not feed._reader.held:
        await asyncio.sleep(0)
    assert FULL_VALUES <= feed._values.qsize() < count
    assert [await anext(feed) for _ in range(count)] == list(range(count))
    await feed.aclose()


async def test_an_unreadable_event_is_passed_over(client: Client, producer: Producer, unique: str):
    await producer.publish(contracts.ADAPTER_EVENTS, training(unique, "running"), unique)
    await tell(producer, announced(unique, 1))
    async with client.revisions(unique, since="earliest") as events:
        assert await anext(events) == announced(unique, 1)


def revision(adapter_id: str, number: int) -> Revision:
    return Revision(adapter_id=adapter_id, number=number, state="announced", digest="d" * 64, pool="tiny", announced_at_ms=1)


async def test_the_catalog_is_listed_as_it_stands(client: Client, producer: Producer, unique: str):
    partition = await client._partitions.of(contracts.ADAPTER_REVISIONS.name(), unique)

    async def write(record, key: bytes):
        return await producer.publish(contracts.ADAPTER_REVISIONS, record, key, partition=partition)

    await write(revision(unique, 1), revision_key(unique, 1))
    await write(Head(adapter_id=unique, pool="tiny", next_number=2, aliases={"production": 1}), head_key(unique))
    await write(revision(unique, 2), revision_key(unique, 2))
    head = Head(adapter_id=unique, pool="tiny", next_number=3, aliases={"production": 2, "previous": 1})
    position = await write(head, head_key(unique))
    view = await client.adapter(unique)
    assert (view.head, view.production) == (head, 2)
    assert (view.position.partition, view.position.offset) == (position.partition, position.offset)
    assert view.revisions == (revision(unique, 1), revision(unique, 2))
    assert view in await client.adapters()


async def test_an_adapter_nobody_announced_is_unknown(client: Client, unique: str):
    with pytest.raises(UnknownAdapter, match=unique):
        await client.adapter(unique)


async def test_the_pools_base_is_the_first_that_was_written(fleet: Connection, producer: Producer, unique: str):
    client = Client(fleet, unique)
    with pytest.raises(BaseUnusable, match=f"mint-stream serve --pool {unique}"):
        await client.pool_base()
    founder = BASE.model_copy(update={"pool": unique})
    await producer.publish(contracts.BASE_MODELS, founder, unique)
    await producer.publish(contracts.BASE_MODELS, founder.model_copy(update={"base_digest": "c" * 64}), unique)
    assert await client.pool_base() == founder
