"""The bus alone: the serving worker around an engine that only echoes, beside raw aiokafka doing as much with the same bytes.

Latency is a request's round trip, one at a time. The sustained rate is how fast a backlog is drained; of every request in it exactly one
result is visible, and the worker's memory stays where it is however long the backlog.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from mint_stream import contracts
from mint_stream.app.measure import machine, memory_mib, percentiles, spread, versions
from mint_stream.app.provisioned import topics
from mint_stream.bench.null_worker import raw_topics
from mint_stream.bench.workload import WrongResult
from mint_stream.bus import provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.producer import Outgoing, outgoing
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.client import Client
from mint_stream.client.connect import connection_from
from mint_stream.messages.inference import InferenceRequest, InferenceResult
from mint_stream.settings import Settings

Side = Literal["ours", "raw"]
SIDES: tuple[Side, ...] = ("ours", "raw")
PROMPT = tuple(range(64, 128))
DEADLINE_MS = 14 * 60 * 1000
WINDOWS = 10
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Size:
    """How much: requests one at a time in each round, rounds, and requests of the backlog."""

    requests: int = 100
    rounds: int = 5
    backlog: int = 100_000


@dataclass
class Drained:
    """A backlog's results as they became visible."""

    wanted: int
    seen: set[bytes] = field(default_factory=set)
    doubled: int = 0
    marks: list[float] = field(default_factory=list)
    """When each tenth was there, from the first result on."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, key: bytes) -> None:
        """One visible result."""
        if key in self.seen:
            self.doubled += 1
            self.moved.set()
            return
        self.seen.add(key)
        if len(self.seen) == 1 or len(self.seen) * WINDOWS // self.wanted > (len(self.seen) - 1) * WINDOWS // self.wanted:
            self.marks.append(time.perf_counter())
            self.moved.set()

    def rates(self) -> list[float]:
        """Results a second in each tenth of the backlog."""
        return [self.wanted / WINDOWS / (end - begin) for begin, end in zip(self.marks, self.marks[1:], strict=False)]


async def run(settings: Settings, size: Size) -> dict[str, Any]:
    """Measure, on a broker of its own or on the user's. Raises WrongResult when a result is missing, doubled or not the echo."""
    async with _broker(settings) as connection:
        round_trips = await _round_trips(settings, connection, size)
        drained = {side: await drain(settings, connection, side, size.backlog) for side in SIDES}
    return _report(size, round_trips, drained)


@asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[Connection]:
    if settings.kafka.bootstrap_servers is not None:
        yield connection_from(settings)
        return
    with tempfile.TemporaryDirectory(prefix="mint-bench-") as room, LocalKafka(Path(room)) as broker:
        yield Connection(broker.bootstrap_servers)


async def _fresh_pool(settings: Settings, connection: Connection) -> str:
    """A pool with topics of its own, raw ones with as many partitions among them."""
    pool = f"bus-{uuid4().hex[:8]}"
    declared = topics(settings)
    await provision.apply(connection, list(declared.values()), pool)
    partitions = declared["inference-requests"].partitions
    admin = AIOKafkaAdminClient(**connection.options())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1) for name in raw_topics(pool)])
    finally:
        await admin.close()
    return pool


@asynccontextmanager
async def _worker(side: Side, connection: Connection, pool: str) -> AsyncIterator[int]:
    """A null worker that takes requests; its process id."""
    arguments = ("-m", "mint_stream.bench.null_worker", side, connection.bootstrap_servers, pool, f"bench-{side}-{pool}")
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        if process.stdout is None or not await process.stdout.readline():
            raise RuntimeError(f"the null worker {side!r} did not start")
        yield process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _round_trips(settings: Settings, connection: Connection, size: Size) -> dict[Side, list[list[float]]]:
    """Milliseconds of each request of each round, the sides in turn; the first round is not counted."""
    pool = await _fresh_pool(settings, connection)
    async with AsyncExitStack() as parts:
        for side in SIDES:
            await parts.enter_async_context(_worker(side, connection, pool))
        client = await parts.enter_async_context(Client(connection, pool))
        raw = await parts.enter_async_context(RawClient(connection, pool))
        asks = {"ours": lambda: _asked(client), "raw": raw.ask}
        found: dict[Side, list[list[float]]] = {side: [] for side in SIDES}
        for _ in range(size.rounds + 1):
            for side in SIDES:
                found[side].append([await _timed(asks[side]) for _ in range(size.requests)])
    return {side: rounds[1:] for side, rounds in found.items()}


async def _timed(ask: Any) -> float:
    begun = time.perf_counter()
    await ask()
    return (time.perf_counter() - begun) * 1000


async def _asked(client: Client) -> None:
    check(await client.generate(PROMPT))


def check(result: InferenceResult) -> None:
    """The echo of the prompt, which is as long as a request may generate. Raises WrongResult."""
    if result.tokens != PROMPT:
        raise WrongResult(f"request {result.request_id} was answered with {result.tokens}: {result.error}")


class RawClient:
    """Asks the raw worker: a producer, and a consumer of all raw results. The bytes are those of ours."""

    def __init__(self, connection: Connection, pool: str) -> None:
        self._requests, results = raw_topics(pool)
        self._producer = AIOKafkaProducer(acks="all", enable_idempotence=True, **connection.options())
        self._reader = LogReader(connection, results, self._take, "latest")
        self._waiting: dict[bytes, asyncio.Future[None]] = {}

    async def __aenter__(self) -> "RawClient":
        await self._producer.start()
        await self._reader.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.stop()
        await self._producer.stop()

    async def ask(self) -> None:
        """One round trip."""
        record = request_record(self._requests)
        key = record.key or b""
        answered = self._waiting[key] = asyncio.get_running_loop().create_future()
        await self._producer.send_and_wait(record.topic, record.value, key=key, headers=list(record.headers))
        await answered

    def _take(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        for record in records:
            if (answered := self._waiting.pop(record.key or b"", None)) is not None:
                answered.set_result(None)


def request_record(topic: str) -> Outgoing:
    """A request of the bare base, as a client would send it."""
    deadline_at_ms = time.time_ns() // 1_000_000 + DEADLINE_MS
    request = InferenceRequest(request_id=uuid4().hex, prompt_tokens=PROMPT, deadline_at_ms=deadline_at_ms)
    return outgoing(topic, request, request.request_id, "bench")


@dataclass(frozen=True)
class Drain:
    """What draining a backlog showed."""

    rates: list[float]
    seconds: float
    memory_mib: dict[str, float]


async def drain(settings: Settings, connection: Connection, side: Side, backlog: int) -> Drain:
    """Put the backlog into the log, then start a worker, and count what becomes visible."""
    pool = await _fresh_pool(settings, connection)
    requests, results = raw_topics(pool) if side == "raw" else (contracts.INFERENCE_REQUESTS.name(pool), contracts.INFERENCE_RESULTS.name())
    keys = await _filled(connection, requests, backlog)
    drained = Drained(backlog)
    reader = LogReader(connection, results, lambda _p, records, _n: _seen(side, drained, keys, records), "latest")
    await reader.start()
    try:
        async with _worker(side, connection, pool) as pid:
            memory = await _watched(drained, reader, pid)
        await reader.caught_up()
    finally:
        await reader.stop()
    if drained.doubled or drained.seen != keys:
        raise WrongResult(f"{side}: of {backlog} requests {len(drained.seen)} have a result, and {drained.doubled} more than one")
    return Drain(drained.rates(), drained.marks[-1] - drained.marks[0], memory)


async def _filled(connection: Connection, topic: str, count: int) -> set[bytes]:
    """The keys of so many requests that lie in the topic now."""
    producer = AIOKafkaProducer(acks="all", enable_idempotence=True, linger_ms=5, **connection.options())
    keys: set[bytes] = set()
    async with producer:
        for _ in range(count):
            record = request_record(topic)
            keys.add(record.key or b"")
            await producer.send(topic, record.value, key=record.key, headers=list(record.headers))
        await producer.flush()
    return keys


def _seen(side: Side, drained: Drained, keys: set[bytes], records: Sequence[LogRecord]) -> None:
    for record in records:
        if record.key in keys:
            if side == "ours":
                check(InferenceResult.decode(record.value))
            drained.note(record.key)


async def _watched(drained: Drained, reader: LogReader, pid: int) -> dict[str, float]:
    """Wait until everything is answered; MiB of the worker after each tenth: the first, the last and the most."""
    failing = asyncio.create_task(reader.run_until_failed())
    seen: list[float] = []
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(drained.seen) + drained.doubled < drained.wanted and not failing.done():
                drained.moved.clear()
                moving = asyncio.create_task(drained.moved.wait())
                await asyncio.wait({moving, failing}, return_when=asyncio.FIRST_COMPLETED)
                moving.cancel()
                seen.append(memory_mib([pid]))
    finally:
        failing.cancel()
    if reader.failed is not None:
        raise reader.failed
    return {"first": seen[0], "last": seen[-1], "most": max(seen)}


def _report(size: Size, round_trips: dict[Side, list[list[float]]], drained: dict[Side, Drain]) -> dict[str, Any]:
    medians = {side: [percentiles(one)["p50"] for one in rounds] for side, rounds in round_trips.items()}
    latency = [ours / raw for ours, raw in zip(medians["ours"], medians["raw"], strict=True)]
    rates = {side: spread(drain.rates) for side, drain in drained.items()}
    return {
        "workload": {**asdict(size), "prompt_tokens": len(PROMPT)},
        "n": size.rounds,
        "round_trip_ms": {side: percentiles([ms for one in rounds for ms in one]) for side, rounds in round_trips.items()},
        "latency_ratio": spread(latency),
        "sustained_per_s": rates,
        "sustained_share": rates["ours"]["median"] / rates["raw"]["median"],
        "backlog": {
            side: {"requests": size.backlog, "seconds": one.seconds, "worker_mib": one.memory_mib} for side, one in drained.items()
        },
        "lost": 0,
        "doubled": 0,
        "machine": machine(),
        "versions": versions("aiokafka", "mint-stream"),
    }
