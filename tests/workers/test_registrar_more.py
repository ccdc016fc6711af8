"""The registrar where two processes believe that they own a partition, where its broker dies, and where its log was really compacted."""

import asyncio
import gc
import signal
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import OffsetAndMetadata

from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogRecord
from mint_stream.bus.topic_facts import topic_facts
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog
from mint_stream.errors import BusUnavailable
from mint_stream.messages.adapters import AdapterCommand, Head, Revision, head_key, revision_key
from mint_stream.workers.registrar import Registrar
from tests.adapter_commands import announce, claim, promote, retire
from tests.child_process import module, said
from tests.registrar_ground import Ground

pytestmark = pytest.mark.kafka

LATER_MS = 4_000_000_000_000
"""Issued in the future, so that no announce is ever too old."""


def fresh(adapter_id: str, **fields: object) -> AdapterCommand:
    return announce(adapter_id, issued_at_ms=LATER_MS, **fields)


def here(ground: Ground, partition: int = 0) -> str:
    return next(name for name in (f"adapter-{n}" for n in range(100)) if ground.home(name) == partition)


async def outcomes(ground: Ground, *commands: AdapterCommand, besides: Collection[str] = ("alias-moved",)) -> list[tuple[str, int]]:
    """What became of each announce: exactly one event of its own, and its number."""
    answers = await ground.answers(*commands)
    own = [[event for event in events if event.type not in besides] for events in answers]
    assert [len(events) for events in own] == [1] * len(commands), "one outcome a command"
    return [(event.type, event.number) for [event] in own]


def announced(*numbers: int) -> list[tuple[str, int]]:
    return [("revision-announced", number) for number in numbers]


@asynccontextmanager
async def zombie(ground: Ground, effect: str, copy: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A registrar process that stops itself right after its first such effect."""
    arguments = (ground.connection.bootstrap_servers, ground.prefix, effect, str(copy), "SIGSTOP")
    async with module("tests.workers.registrar_process", *arguments) as process:
        await said(process, "started")
        yield process


@pytest.fixture(autouse=True)
def leave_no_failed_futures() -> Iterator[None]:
    """aiokafka never reads some futures it fails when fenced: their complaint is printed here, not amid another test."""
    yield
    gc.collect()


@pytest.mark.timeout(120)
@pytest.mark.long
@pytest.mark.parametrize("effect", ["offsets", "copy"])
async def test_a_registrar_that_slept_through_a_takeover_writes_nothing_and_recovers(
    connection: Connection, topic_prefix: str, tmp_path: Path, effect: str
) -> None:
    ground = await Ground.create(connection, topic_prefix, partitions=2)
    adapter = here(ground)
    first, missed, late, last = (fresh(adapter) for _ in range(4))
    async with zombie(ground, effect, tmp_path / "zombie") as process:
        await ground.give(first)
        await said(process, "SIGSTOP")
        async with ground.registrar(tmp_path / "heir"):
            await ground.give(missed)
            assert await outcomes(ground, first, missed) == announced(1, 2)
            process.send_signal(signal.SIGCONT)
            await ground.give(late)
            assert await outcomes(ground, late) == announced(3)
        await ground.give(last)
        assert await outcomes(ground, first, missed, late, last) == announced(1, 2, 3, 4)
        assert process.returncode is None, "the sleeper went on as an ordinary member"
    with await ground.catalog() as catalog:
        assert [revision.number for revision in catalog.revisions(adapter)] == [1, 2, 3, 4]
    everything = Counter(record.key for record in await ground.records(ground.topics.revisions, committed=False))
    assert everything[revision_key(adapter, 1)] == (1 if effect == "copy" else 2), "the sleeper's half transaction is there, unseen"


async def test_a_registrar_whose_consumer_stands_still_ends_with_the_reason(connection: Connection, topic_prefix: str) -> None:
    ground = await Ground.create(connection, topic_prefix)
    with Catalog(None, ground.topics.partitions) as catalog:
        registrar = ground.build(catalog, stuck_after_s=2.0)
        await registrar.start()
        running = asyncio.create_task(registrar.run())
        first = fresh(here(ground))
        await ground.give(first)
        await ground.answers(first)
        registrar._consumer.pause(*registrar._moving())  # as aiokafka's own bugs do: assigned, not told to pause, and not fetching
        await ground.give(fresh(here(ground)))
        with pytest.raises(BusUnavailable, match="restart this worker"):
            await running
        await registrar.drain()


class Moving:
    """A coordinator that cannot say at first what was committed. aiokafka leaves of its error only an answer that names no partition."""

    def __init__(self, admin: AIOKafkaAdminClient) -> None:
        self._admin = admin
        self.asked = 0

    async def list_consumer_group_offsets(self, group: str, partitions: list[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        self.asked += 1
        return {} if self.asked == 1 else await self._admin.list_consumer_group_offsets(group, partitions=partitions)

    async def close(self) -> None:
        await self._admin.close()


async def test_a_registrar_that_is_not_told_its_offset_asks_again_and_repeats_no_command(connection: Connection, topic_prefix: str) -> None:
    ground = await Ground.create(connection, topic_prefix, partitions=1)
    before, after = [fresh("a"), fresh("a"), promote("a", 1)], fresh("a")
    async with ground.registrar():
        await ground.give(*before)
        await ground.answers(*before)
    with Catalog(None, ground.topics.partitions) as catalog:
        registrar = ground.build(catalog)
        await registrar.start()
        registrar._admin = moving = Moving(registrar._admin)
        running = asyncio.create_task(registrar.run())
        await ground.give(after)
        await ground.answers(after)
        await registrar.drain()
        await running
    assert moving.asked > 1
    assert "command-repeated" not in {event.type for event in await ground.events()}


@pytest.fixture(scope="module")
def own_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A broker that may be killed, and whose log cleaner does not rest."""
    properties = {"log.cleaner.backoff.ms": "100", "log.retention.check.interval.ms": "500"}
    with LocalKafka(tmp_path_factory.mktemp("own"), extra_properties=properties) as broker:
        yield broker


@pytest.mark.timeout(120)
@pytest.mark.long
async def test_a_registrar_outlives_its_broker(own_kafka: LocalKafka, topic_prefix: str) -> None:
    ground = await Ground.create(Connection(own_kafka.bootstrap_servers), topic_prefix)
    names = [here(ground, 0), here(ground, 1)]
    commands: list[AdapterCommand] = []
    enough = asyncio.Event()
    first = fresh(names[0])
    async with ground.registrar() as registrar:
        giving = asyncio.create_task(give_until(ground, enough, names, commands))
        await ground.give(first)
        await ground.answers(first)
        own_kafka.kill()
        await asyncio.to_thread(own_kafka.start)
        enough.set()
        await giving
        # a producer that was replaced may have sent a command twice, and the registrar says so
        done = await outcomes(ground, first, *commands, besides=("alias-moved", "command-repeated"))
        assert registrar.owned == {0, 1}
    for name in names:
        own = [outcome for outcome, command in zip(done, [first, *commands], strict=True) if command.adapter_id == name]
        assert sorted(own) == announced(*range(1, len(own) + 1)), "numbers dense"


async def give_until(ground: Ground, enough: asyncio.Event, names: list[str], given: list[AdapterCommand]) -> None:
    """Each is acknowledged before the next is sent, so that a broker is killed amid them; a few more at the end."""
    producer = Producer(ground.connection, "test")
    await producer.start()
    left = 10
    try:
        while left:
            given.append(fresh(names[len(given) % 2]))
            await producer.publish_raw(ground.record(given[-1]))
            left -= enough.is_set()
    finally:
        await producer.stop()


COMPACTED = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.001", "delete.retention.ms": "100"}

Copy = dict[str, tuple[Head | None, object, list[Revision]]]


def content(catalog: Catalog) -> Copy:
    """Everything a catalog says: heads, where they stand, revisions."""
    names = sorted(catalog.adapters())
    return {name: (catalog.head(name), catalog.head_position(name), catalog.revisions(name)) for name in names}


async def compacted(ground: Ground, live: set[bytes]) -> None:
    """Roll the segment by one more command, and read, until each key of `live` is there once and no other, but for the rolling ones."""
    rolling = f"{ground.prefix}-rolling"
    own = f"{rolling}/".encode()
    while True:
        command = fresh(rolling)
        await ground.give(command)
        await ground.answers(command)
        left = Counter(record.key for record in await ground.records(ground.topics.revisions) if not (record.key or b"").startswith(own))
        if left == dict.fromkeys(live, 1):
            return


@pytest.mark.timeout(120)
@pytest.mark.long
async def test_a_compacted_log_replays_to_the_same_catalog(own_kafka: LocalKafka, topic_prefix: str, tmp_path: Path) -> None:
    ground = await Ground.create(Connection(own_kafka.bootstrap_servers), topic_prefix, partitions=1, revisions=COMPACTED)
    kept, deleted = "kept", "deleted"
    given = [
        claim(kept, 1),
        *[fresh(kept, job_id="job", attempt=1, step=step) for step in range(6)],
        promote(kept, 3),
        retire(kept, 1),
        retire(kept, 2),
        *[fresh(deleted) for _ in range(3)],
    ]
    async with ground.registrar(tmp_path / "registrar"):
        await ground.give(*given)
        await ground.answers(*given)
        with Catalog(tmp_path / "early", 1) as early:
            await ground.read(ground.topics.revisions, early.apply)
        await bury(ground, deleted, 3)
        with await ground.catalog() as whole:
            expected = content(whole)
        live = {head_key(kept), *(revision_key(kept, number) for number in range(1, 7))}
        await compacted(ground, live)
    with await ground.catalog() as replayed, Catalog(tmp_path / "early", 1) as continued:
        await ground.read(ground.topics.revisions, continued.apply)
        assert content(replayed)[kept] == expected[kept] == content(continued)[kept]
        assert [revision.state for revision in replayed.revisions(kept)] == ["retired"] * 2 + ["announced"] * 4
        assert replayed.number_of_step(kept, "job", 4) == 5
        assert deleted not in content(replayed)
        assert replayed.revisions(deleted) == []
    again, repeated = fresh(kept, job_id="job", attempt=1, step=6), fresh(kept, job_id="job", attempt=1, step=0)
    async with ground.registrar(tmp_path / "another"):
        await ground.give(again, repeated)
        assert await outcomes(ground, again, repeated) == [*announced(7), ("command-repeated", 1)]


async def bury(ground: Ground, adapter_id: str, revisions: int) -> None:
    """Tombstones for all that is known of an adapter, the head last."""
    keys = [*(revision_key(adapter_id, number) for number in range(1, revisions + 1)), head_key(adapter_id)]
    await ground.publish(*(Outgoing(ground.topics.revisions, key, None, partition=0) for key in keys))


class Slow(TransactionalProducer):
    """Fails its first start, so that its partition is taken over later than the others, and begins its second one only when it may."""

    starts: list[str] = []
    may_start: asyncio.Event

    async def start(self) -> None:
        self.starts.append("again" if self.starts else "first")
        if self.starts == ["first"]:
            raise BusUnavailable("not yet")
        await self.may_start.wait()
        await super().start()


async def test_a_partition_that_is_slow_to_be_taken_over_keeps_no_other_waiting(connection: Connection, topic_prefix: str) -> None:
    ground = await Ground.create(connection, topic_prefix)
    quick, slow = fresh(here(ground, 0)), fresh(here(ground, 1))
    Slow.starts, Slow.may_start = [], asyncio.Event()

    def open_producer(partition: int) -> TransactionalProducer:
        return (Slow if partition else TransactionalProducer)(connection, f"{ground.prefix}-{partition}", "test", timeout_s=10)

    async with ground.registrar(producers=open_producer) as registrar:
        await ground.give(slow)
        while "again" not in Slow.starts:
            await asyncio.sleep(0.01)
        await ground.give(quick)
        await ground.answers(quick)
        assert registrar.owned == {0}
        Slow.may_start.set()
        assert await outcomes(ground, quick, slow) == announced(1, 1)


class Interrupted(Catalog):
    """Its first fold ends in the middle, as when the broker goes away; says where each began."""

    def __init__(self, partitions: int) -> None:
        super().__init__(None, partitions)
        self.starts: list[dict[int, int]] = []
        self.whole = False

    def prepare(self, *arguments: object) -> dict[int, int]:
        self.starts.append(super().prepare(*arguments))
        return self.starts[-1]

    def apply(self, partition: int, records: Sequence[LogRecord], next_offset: int) -> None:
        if not self.whole and records:
            self.whole = True
            super().apply(partition, records[:1], records[0].offset + 1)
            raise BusUnavailable("the broker is away for a moment")
        super().apply(partition, records, next_offset)


async def test_a_fold_that_was_interrupted_goes_on_where_it_was(connection: Connection, topic_prefix: str) -> None:
    ground = await Ground.create(connection, topic_prefix, partitions=1)
    first, second = fresh("a"), fresh("a")
    async with ground.registrar():
        await ground.give(first)
        await ground.answers(first)
    with Interrupted(1) as catalog:
        async with running(ground.build(catalog)):
            await ground.give(second)
            assert await outcomes(ground, first, second) == announced(1, 2)
        assert catalog.starts[0] == {} and catalog.starts[1][0] > 0, "the second fold began after what the first had applied"


async def test_a_copy_counts_as_current_for_as_long_as_its_partitions_are_owned(connection: Connection, topic_prefix: str) -> None:
    """Else a failure after more days than tombstones are kept would have the whole log folded again."""
    ground = await Ground.create(connection, topic_prefix)
    command = fresh(here(ground))
    with Catalog(None, 2) as catalog:
        async with running(ground.build(catalog, note_current_s=0.01)) as registrar:
            await ground.give(command)
            await ground.answers(command)
            while registrar.owned != {0, 1}:
                await asyncio.sleep(0.01)
            folded_ms = max(catalog._rows.fresh_at_ms().values())
            while min(catalog._rows.fresh_at_ms().values()) <= folded_ms:
                await asyncio.sleep(0.01)
            retention_ms, positions = 1000, catalog.positions()
            topic_id = (await topic_facts(connection, ground.topics.revisions)).topic_id
            assert catalog.prepare(topic_id, retention_ms, folded_ms + retention_ms) == positions, "nothing is dropped"


@asynccontextmanager
async def running(registrar: Registrar) -> AsyncIterator[Registrar]:
    await registrar.start()
    working = asyncio.create_task(registrar.run())
    try:
        yield registrar
    finally:
        await registrar.drain()
        await working


class Choking(Catalog):
    """Has one adapter that raises what nobody expected."""

    def head(self, adapter_id: str) -> Head | None:
        if adapter_id.startswith("chokes"):
            raise ValueError("a fault of ours")
        return super().head(adapter_id)


async def test_a_command_that_cannot_be_carried_out_is_set_aside_alone_and_told(connection: Connection, topic_prefix: str) -> None:
    ground = await Ground.create(connection, topic_prefix, partitions=1)
    bad = [fresh("chokes-1"), fresh("chokes-2")]
    good = [fresh("a"), fresh("a"), fresh("a")]
    with Choking(None, 1) as catalog:
        registrar = ground.build(catalog)
        await ground.give(good[0], bad[0], good[1], bad[1])
        await registrar.start()
        running = asyncio.create_task(registrar.run())
        await ground.answers(good[0], bad[0], good[1], bad[1])
        await ground.give(good[2])
        assert await outcomes(ground, *good) == announced(1, 2, 3)
        answers = await ground.answers(*bad)
        await registrar.drain()
        await running
    assert [[(event.type, "a fault of ours" in event.reason) for event in events] for events in answers] == [
        [("command-rejected", True)]
    ] * 2
    letters = await ground.records(f"{ground.topics.commands}-dlq")
    assert [letter.value for letter in letters] == [command.encode() for command in bad]
    assert {dict(letter.headers)["mint_error_code"] for letter in letters} == {b"poison-record"}
