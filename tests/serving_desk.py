"""A real serving worker over the real broker, with the null engine and a catalog written by hand: for what happens around an engine."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from mint_stream import contracts
from mint_stream.adapter import AdapterWeights
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake, IntakeLimits
from mint_stream.bus.partitioner import murmur2_partition
from mint_stream.bus.producer import Outgoing, Producer, RecordPosition
from mint_stream.bus.seat import Seat
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.cache.device import DeviceTier
from mint_stream.cache.disk import DiskTier
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Loader
from mint_stream.cache.source import AdapterSource
from mint_stream.catalog import Catalog, Entry
from mint_stream.engine.null import EchoEngine
from mint_stream.messages.adapters import Head, Quarantine, Revision, RevisionState, decode_command, head_key, revision_key
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.inference import Cancellation, InferenceRequest, InferenceResult
from mint_stream.metrics import Metrics
from mint_stream.store import Store
from mint_stream.workers.admission import Admission, AdmissionLimits
from mint_stream.workers.answers import Answers
from mint_stream.workers.canary_tallies import CanaryTallies
from mint_stream.workers.cancellations import Cancellations
from mint_stream.workers.clock import now_ms
from mint_stream.workers.completing import Completer, Identity
from mint_stream.workers.following import previous_in
from mint_stream.workers.interruptions import Interruptions
from mint_stream.workers.lanes import Consequences, Lanes
from mint_stream.workers.leasing import Leasing
from mint_stream.workers.quarantine import QuarantineReports
from mint_stream.workers.serving import ServingWorker
from mint_stream.workers.shares import TenantShares
from tests.factories import LINEARS, random_weights
from tests.provisioned import PARTITIONS, ensure_topics

CONTEXT_TOKENS = 256
BASE = PoolBase(
    pool="desk",
    base_digest="b" * 64,
    architecture="None",
    context_tokens=CONTEXT_TOKENS,
    vocabulary_tokens=256,
    targets=random_weights().targets(),
    max_rank=16,
)


class ByteEncoder:
    """A prompt's tokens are its bytes."""

    def encode(self, request: InferenceRequest) -> tuple[int, ...]:
        return request.prompt_tokens or tuple((request.prompt or "".join(turn.content for turn in request.messages or ())).encode())


@dataclass
class Desk:
    """What a test talks to. `engine` and `catalog` are the worker's own."""

    connection: Connection
    pool: str
    store: Store
    engine: EchoEngine = field(default_factory=EchoEngine)
    metrics: Metrics = field(default_factory=Metrics)
    interruptions: Interruptions = field(default_factory=Interruptions)
    offset: int = 0
    limits: IntakeLimits | None = None
    disk: DiskTier | None = None
    shares: TenantShares = field(default_factory=lambda: TenantShares(10_000, 1.0))
    seat: Seat | None = None
    _results: dict[str, list[InferenceResult]] = field(default_factory=dict)
    _buried: list[LogRecord] = field(default_factory=list)
    _commands: list[Quarantine] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _parts: AsyncExitStack = field(default_factory=AsyncExitStack)

    @classmethod
    async def open(cls, connection: Connection, room: Path, pool: str | None = None, **parts: Any) -> Self:
        """A desk of a new pool, or one more of `pool`: their workers are one group. `parts`: fields that are not the usual ones."""
        pool = pool or f"desk-{uuid4().hex[:8]}"
        await ensure_topics(connection, pool)
        desk = cls(connection, pool, parts.pop("store", None) or Store((room / "store").as_uri()), **parts)
        await desk._start()
        return desk

    async def close(self) -> None:
        await self.intake.drain(10)
        await self._parts.aclose()

    async def _start(self) -> None:
        self.producer = Producer(self.connection, source="desk")
        await self.producer.start()
        self._parts.push_async_callback(self.producer.stop)
        for topic, take in ((contracts.INFERENCE_RESULTS, self._take), (contracts.INFERENCE_REPLIES, self._take)):
            await self._read(topic.name(), take)
        for lane in (contracts.INFERENCE_REQUESTS, contracts.INFERENCE_BATCH):
            await self._read(lane.dead_letter_name(self.pool), self._bury)
        await self._read(contracts.ADAPTER_COMMANDS.name(), self._command)
        self.catalog = self._parts.enter_context(Catalog(None, PARTITIONS))
        source = AdapterSource(self.store, LINEARS, BASE.max_rank, disk=self.disk)
        self.loader = Loader(source, HostTier(2**20), DeviceTier(2**20))
        self._parts.push_async_callback(self.loader.close)
        self.cancellations = Cancellations(self.interruptions.cancel, keep_s=3600)
        self._parts.push_async_callback(self._work(self._assembled()))

    def _assembled(self) -> ServingWorker:
        answers = Answers(self.producer, PARTITIONS)
        admission = Admission(self.catalog, ByteEncoder(), BASE, AdmissionLimits(CONTEXT_TOKENS, 30, 60))
        identity = Identity("desk", BASE.base_digest, contracts.INFERENCE_BATCH.name(self.pool))
        self.leasing = Leasing(self.loader, self.metrics, previous_in(self.catalog))
        completer = Completer(self.engine, self.leasing, admission, answers, self.cancellations, identity)
        self.intake = Intake(self.connection, self.lanes, f"serve-{self.pool}", DeadLetters(self.producer), self.limits, self.seat)
        self.tallies = CanaryTallies(self.catalog)
        lanes = Lanes(self.producer, self.pool, self.shares, default_deadline_s=30)
        consequences = Consequences(QuarantineReports(self.producer), lanes, self.tallies)
        return ServingWorker(self.intake, completer, answers, consequences, self.metrics, self.interruptions)

    def _work(self, worker: ServingWorker) -> Any:
        running: list[asyncio.Task[None]] = []

        async def begin() -> None:
            await self.intake.start()
            running.append(asyncio.create_task(worker.run()))

        async def end() -> None:
            await self.intake.stop()
            await asyncio.gather(*running)

        self.begin = begin
        return end

    async def _read(self, topic: str, take: Any) -> None:
        reader = LogReader(self.connection, topic, take, "latest")
        await reader.start()
        self._parts.push_async_callback(reader.stop)

    def _take(self, _partition: int, records: Sequence[LogRecord], _next: int) -> None:
        for record in records:
            result = InferenceResult.decode(record.value)
            self._results.setdefault(result.request_id, []).append(result)
        self._tell()

    def _bury(self, _partition: int, records: Sequence[LogRecord], _next: int) -> None:
        self._buried.extend(records)
        self._tell()

    def _command(self, _partition: int, records: Sequence[LogRecord], _next: int) -> None:
        commands = [decode_command(record.value) for record in records]
        self._commands.extend(command for command in commands if isinstance(command, Quarantine))
        self._tell()

    def _tell(self) -> None:
        async def notify() -> None:
            async with self._news:
                self._news.notify_all()

        self._telling = asyncio.create_task(notify())

    async def _until(self, found: Any) -> Any:
        async with asyncio.timeout(20), self._news:
            await self._news.wait_for(found)
        return found()

    async def result(self, request_id: str) -> InferenceResult:
        """The first terminal result of the request."""
        return (await self._until(lambda: self._results.get(request_id)))[0]

    def results(self, request_id: str) -> list[InferenceResult]:
        """All that came so far."""
        return self._results.get(request_id, [])

    async def buried(self, count: int) -> list[LogRecord]:
        """The first `count` dead letters."""
        return (await self._until(lambda: self._buried if len(self._buried) >= count else None))[:count]

    async def quarantined(self, adapter_id: str) -> Quarantine:
        """The quarantine command that the worker sent."""
        wanted = await self._until(lambda: [command for command in self._commands if command.adapter_id == adapter_id])
        return wanted[0]

    @property
    def lanes(self) -> list[str]:
        """The topics that requests come from, the online lane first."""
        return [lane.name(self.pool) for lane in (contracts.INFERENCE_REQUESTS, contracts.INFERENCE_BATCH)]

    async def send(
        self,
        value: bytes | None,
        key: bytes | None = b"k",
        headers: Any = (),
        partition: int = 0,
        lane: contracts.Topic = contracts.INFERENCE_REQUESTS,
    ) -> RecordPosition:
        """Produce raw bytes as a stranger would; one partition, so that neighbours share a fetch."""
        return await self.producer.publish_raw(Outgoing(lane.name(self.pool), key, value, headers, partition, limit_bytes=2**26))

    async def ask(self, prompt: str, partition: int = 0, lane: contracts.Topic = contracts.INFERENCE_REQUESTS, **fields: Any) -> str:
        """Produce a request; gives its id."""
        request = InferenceRequest(request_id=fields.pop("request_id", uuid4().hex), prompt=prompt, **fields)
        await self.send(request.encode(), partition=partition, lane=lane)
        return request.request_id

    @asynccontextmanager
    async def written(self, *topics: contracts.Topic) -> AsyncIterator[list[LogRecord]]:
        """What these topics get within the block, complete at its end."""
        found: list[LogRecord] = []
        readers = [
            LogReader(self.connection, topic.name(self.pool), lambda _p, records, _n: found.extend(records), "latest") for topic in topics
        ]
        for reader in readers:
            await reader.start()
        yield found
        for reader in readers:
            await reader.caught_up()
            await reader.stop()

    async def committed(self) -> dict[TopicPartition, int]:
        """The group's committed offset of every partition that has records."""
        admin = AIOKafkaAdminClient(**self.connection.options())
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets(f"serve-{self.pool}")
        finally:
            await admin.close()
        return {partition: known.offset for partition, known in offsets.items() if known.offset > 0}

    async def ends(self) -> dict[TopicPartition, int]:
        """The end of every partition of the lanes that has records."""
        consumer = AIOKafkaConsumer(**self.connection.options())
        await consumer.start()
        try:
            partitions = [TopicPartition(lane, number) for lane in self.lanes for number in range(PARTITIONS)]
            ends = await consumer.end_offsets(partitions)
        finally:
            await consumer.stop()
        return {partition: end for partition, end in ends.items() if end > 0}

    async def cancel(self, request_id: str, reason: str, tenant: str = "default") -> None:
        """A cancellation as the reader of its topic hands it on."""
        record = Cancellation(tenant=tenant, request_id=request_id, reason=reason, cancelled_at_ms=now_ms())
        self.cancellations.apply(0, [LogRecord(None, record.encode(), (), 0, now_ms())], 1)

    def publish(
        self, adapter_id: str, weights: AdapterWeights, state: RevisionState = "announced", base_digest: str = "b" * 64
    ) -> Revision:
        """Store an adapter and write it into the catalog as production, as the registrar would have."""
        return self.publish_files(adapter_id, weights.to_peft(), weights, state, base_digest)

    def publish_files(
        self,
        adapter_id: str,
        files: dict[str, bytes],
        weights: AdapterWeights,
        state: RevisionState = "announced",
        base_digest: str = "b" * 64,
    ) -> Revision:
        """As `publish`, with these files under the digest of `weights`."""
        manifest = self.store.put_revision(
            files, digest=weights.digest, base_digest=base_digest, targets=weights.targets(), parameters=weights.parameters
        )
        revision = Revision(
            adapter_id=adapter_id,
            number=1,
            state=state,
            digest=weights.digest,
            pool=self.pool,
            uri=manifest.uri,
            base_digest=base_digest,
            announced_at_ms=1,
        )
        self.write(revision)
        return revision

    def write(self, revision: Revision, **head_fields: Any) -> None:
        """Put a revision and a head, which has it as production unless `head_fields` say otherwise, into the catalog."""
        fields = {"next_number": revision.number + 1, "aliases": {"production": revision.number}, **head_fields}
        head = Head(adapter_id=revision.adapter_id, pool=self.pool, **fields)
        partition = murmur2_partition(revision.adapter_id.encode(), PARTITIONS)
        start, self.offset = self.offset, self.offset + 2
        rows = [
            Entry(revision_key(revision.adapter_id, revision.number), revision.encode(), start),
            Entry(head_key(revision.adapter_id), head.encode(), start + 1),
        ]
        self.catalog.apply(partition, rows, self.offset)
