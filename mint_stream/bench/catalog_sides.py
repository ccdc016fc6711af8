"""The measured sides of `bench catalog`, each for a process of its own: it begins empty and states what it holds more at the end."""

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mint_stream import contracts
from mint_stream.app.catalog_copy import current_catalog
from mint_stream.app.measure import private_bytes
from mint_stream.bench.catalog_log import digest_of, name_of, records_of
from mint_stream.bench.wrong import WrongResult
from mint_stream.bus.connection import Connection
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import Outgoing, Producer
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.bus.transactions import TransactionalProducer
from mint_stream.catalog import Catalog
from mint_stream.metrics import Metrics
from mint_stream.workers.catalog_writer import RegistrarTopics
from mint_stream.workers.registrar import Member, Registrar

_REVISIONS = contracts.ADAPTER_REVISIONS
_FIRST_UPDATE_S = 30.0
_LOOK_S = 0.001
_AT_ONCE = 50
"""Names resolved between two looks at what else there is to do, as a worker admits requests."""
_ASKED = 20_000
"""Names asked for before memory is taken: more than are kept decoded."""


@dataclass(frozen=True)
class Replayed:
    """A replay into an empty copy."""

    records: int
    seconds: float
    extra_private_bytes: int


@dataclass(frozen=True)
class Resolved:
    """Names resolved while the catalog changes."""

    p50_us: float
    p99_us: float
    updates_per_s: float


def replayed(connection: Connection, copy: Path, adapters: int) -> Replayed:
    """From nothing to all that the log holds."""
    return asyncio.run(_replay(connection, copy, adapters))


def restarted(connection: Connection, copy: Path, adapters: int) -> float:
    """Seconds from a copy that was left some time ago to one that is current, its process already running."""
    return asyncio.run(_restart(connection, copy, adapters))


def resolved(connection: Connection, copy: Path, adapters: int, resolves: int, updates_per_s: int) -> Resolved:
    """Resolve names drawn evenly, while that many revisions a second are announced and applied."""
    return asyncio.run(_resolve(connection, copy, adapters, resolves, updates_per_s))


def registered(connection: Connection, copy: Path, commands: int) -> float:
    """Commands a second of a registrar that finds them in its topic: from when it has its first partition to its last event."""
    return asyncio.run(_register(connection, copy, commands))


async def _replay(connection: Connection, copy: Path, adapters: int) -> Replayed:
    before = await _empty_worker()
    begun = time.perf_counter()
    async with current_catalog(connection, copy, _REVISIONS) as (catalog, _):
        seconds = time.perf_counter() - begun
        for _ in range(_ASKED):
            _check(catalog, name_of(random.randrange(adapters)))
        return Replayed(len(catalog), seconds, private_bytes(copy) - before)


async def _empty_worker() -> int:
    with tempfile.TemporaryDirectory() as directory, Catalog(Path(directory), 1):
        return private_bytes(Path(directory))


async def _restart(connection: Connection, copy: Path, adapters: int) -> float:
    begun = time.perf_counter()
    async with current_catalog(connection, copy, _REVISIONS) as (catalog, _):
        seconds = time.perf_counter() - begun
        _check(catalog, name_of(0))
        _check(catalog, name_of(adapters - 1))
        return seconds


def _check(catalog: Catalog, name: str) -> int:
    """Raises WrongResult for a revision that is not whole."""
    revision = catalog.resolve(name)
    if revision.adapter_id != name or revision.digest != digest_of(name, revision.number):
        raise WrongResult(f"{name} resolves to {revision.adapter_id}@{revision.number} with digest {revision.digest[:12]}")
    return revision.number


async def _resolve(connection: Connection, copy: Path, adapters: int, resolves: int, updates_per_s: int) -> Resolved:
    async with current_catalog(connection, copy, _REVISIONS) as (catalog, reader):
        updated = asyncio.Event()
        catalog.subscribe(lambda change: updated.set())
        draw = random.Random(0)
        for _ in range(resolves):
            _check(catalog, name_of(draw.randrange(adapters)))
        producer = Producer(connection, "bench")
        await producer.start()
        before, begun = sum(reader.positions.values()), time.perf_counter()
        updating = asyncio.create_task(_update(producer, catalog, adapters, updates_per_s))
        try:
            await asyncio.wait_for(updated.wait(), _FIRST_UPDATE_S)
            times = await _timed(catalog, [draw.randrange(adapters) for _ in range(resolves)])
        finally:
            updating.cancel()
            await asyncio.gather(updating, return_exceptions=True)
            await producer.stop()
        applied = (sum(reader.positions.values()) - before) / 2 / (time.perf_counter() - begun)
        times.sort()
        return Resolved(times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3, applied)


async def _timed(catalog: Catalog, indices: Sequence[int]) -> list[int]:
    """Nanoseconds of each; a name never means an older revision than it did before."""
    times: list[int] = []
    seen: dict[str, int] = {}
    for n, index in enumerate(indices):
        name = name_of(index)
        request = ("bench", str(n))
        begun = time.perf_counter_ns()
        revision = catalog.choose(name, request).revision  # as admission does
        times.append(time.perf_counter_ns() - begun)
        if revision.digest != digest_of(name, revision.number) or revision.number < seen.get(name, 0):
            raise WrongResult(f"{name} resolves to {revision.number} with digest {revision.digest[:12]} after {seen.get(name, 0)}")
        seen[name] = revision.number
        if n % _AT_ONCE == 0:
            await asyncio.sleep(0.002)
    return times


async def _update(producer: Producer, catalog: Catalog, adapters: int, updates_per_s: int) -> None:
    """Announce the next revisions of adapters in turn, as many a second."""
    begun, done = time.perf_counter(), 0
    numbers: dict[str, int] = {}
    while True:
        while done < (time.perf_counter() - begun) * updates_per_s:
            name = name_of(done * 31 % adapters)
            numbers[name] = numbers.get(name, catalog.resolve(name).number) + 1
            for key, value in records_of(name, numbers[name]):
                home = murmur2_partition(name.encode(), _REVISIONS.partitions)
                await producer.send_raw(Outgoing(_REVISIONS.name(), key, value, partition=home))
            done += 1
        await asyncio.sleep(0.01)


async def _register(connection: Connection, copy: Path, commands: int) -> float:
    topics = RegistrarTopics(_REVISIONS.partitions)
    with Catalog(copy, topics.partitions) as catalog:
        answered = _Answered(commands)
        events = LogReader(connection, topics.events, answered.apply, "latest")
        await events.start()
        registrar = Registrar(
            connection, topics, catalog, lambda n: TransactionalProducer(connection, f"registrar-{n}", "bench"), Metrics(), Member()
        )
        await registrar.start()
        running, waiting = asyncio.create_task(registrar.run()), asyncio.create_task(answered.all.wait())
        failing = asyncio.create_task(events.run_until_failed())
        try:
            while not registrar.owned and not running.done():  # noqa: ASYNC110  # it tells nobody when it begins
                await asyncio.sleep(_LOOK_S)
            begun = time.perf_counter()
            await asyncio.wait({running, failing, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            failing.cancel()
            waiting.cancel()
            await registrar.drain()
            await running
            await events.stop()
        if events.failed is not None:
            raise events.failed
        return answered.per_s(begun)


class _Answered:
    """Counts what the registrar says. Raises WrongResult when it refuses anything."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._count = 0
        self._last = 0.0
        self.all = asyncio.Event()

    def apply(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        for record in records:
            if b'"type":"command-rejected"' in (record.value or b""):
                raise WrongResult(f"a command was refused: {record.value!r}")
            if b'"type":"revision-announced"' in (record.value or b""):
                self._count, self._last = self._count + 1, time.perf_counter()
        if self._count >= self._wanted:
            self.all.set()

    def per_s(self, begun: float) -> float:
        """From `begun` to the last."""
        return self._count / max(1e-9, self._last - begun)
