"""Serving workers whose answers testify to the adapter they were made with. Without a model an answer is a hash of the adapter's bytes.

All but the engine is the serving worker's own: intake, catalog, admission, tiers, leases, results.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mint_stream import contracts
from mint_stream.adapter import AdapterBlock, AdapterWeights, LayerShape
from mint_stream.bench.workload import drawn_adapter
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake
from mint_stream.bus.producer import Producer
from mint_stream.bus.seat import Seat
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.cache.device import DeviceTier
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Loader
from mint_stream.cache.source import AdapterSource
from mint_stream.catalog import Catalog
from mint_stream.engine.generation import Completion, Generation, GenerationEngine, OnText
from mint_stream.engine.null import EchoEngine
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.inference import InferenceRequest
from mint_stream.metrics import Metrics
from mint_stream.store import Store
from mint_stream.workers.admission import Admission, AdmissionLimits
from mint_stream.workers.answers import Answers
from mint_stream.workers.canary_tallies import CanaryTallies
from mint_stream.workers.cancellations import Cancellations
from mint_stream.workers.completing import Completer, Identity
from mint_stream.workers.following import follow, previous_in
from mint_stream.workers.interruptions import Interruptions
from mint_stream.workers.lanes import Consequences, Lanes
from mint_stream.workers.leasing import Leasing
from mint_stream.workers.pools import found_pool
from mint_stream.workers.quarantine import QuarantineReports
from mint_stream.workers.serving import ServingWorker
from mint_stream.workers.shares import TenantShares

TIER_ADAPTERS = 24
"""So many fit a tier, fewer than a run makes: revisions are evicted and loaded again while others take their place."""
WITNESS_TOKENS = 8
PROMPT = "Which revision of which adapter answers this, and with which of all the bytes?"
"""Everybody's: what one revision computed of it would be there for the next."""
ENGINE_S = 0.005
"""What an answer takes, so that requests are under way while aliases move."""
_WAIT_S = 60.0


class Witnesses(Protocol):
    """Adapters, and engines whose answers tell which of them they were made with."""

    layers: Mapping[str, LayerShape]

    def base(self, pool: str) -> PoolBase:
        """The base these adapters are of."""
        ...

    def made(self, seed: int) -> AdapterWeights:
        """An adapter like no other."""
        ...

    def engine(self) -> GenerationEngine:
        """A worker's engine."""
        ...

    async def testimony(self, weights: AdapterWeights) -> tuple[int, ...]:
        """The tokens of every right answer that is made with this adapter."""
        ...


class Hashes:
    """Nothing is computed: an answer is a hash of the bytes that were resident when it was made."""

    layers: Mapping[str, LayerShape] = {f"model.layers.{layer}.self_attn.q_proj": (16, 16) for layer in range(2)}

    def base(self, pool: str) -> PoolBase:
        """A base that does not exist."""
        digest, targets = hashlib.sha256(b"witness").hexdigest(), self.made(0).targets()
        return PoolBase(
            pool=pool, base_digest=digest, architecture="Witness", context_tokens=4096, vocabulary_tokens=256, targets=targets, max_rank=2
        )

    def made(self, seed: int) -> AdapterWeights:
        """Random numbers."""
        return drawn_adapter(dict.fromkeys(self.layers, (16, 16)), 2, seed, output_head=None)

    def engine(self) -> GenerationEngine:
        """The null engine, which takes a moment."""
        return HashingEngine()

    async def testimony(self, weights: AdapterWeights) -> tuple[int, ...]:
        """The hash of its block."""
        return hash_of(AdapterBlock.build(weights))


def hash_of(block: AdapterBlock) -> tuple[int, ...]:
    """Tokens that are another block's by chance alone."""
    return tuple(hashlib.sha256(block.flat.contiguous().numpy().tobytes()).digest()[:WITNESS_TOKENS])


class HashingEngine(EchoEngine):
    """Answers with the hash of the adapter."""

    async def run(self, generation: Generation, on_text: OnText | None = None) -> Completion:
        """As EchoEngine, with other tokens."""
        done = await super().run(generation, on_text)
        await asyncio.sleep(ENGINE_S)
        return replace(done, tokens=hash_of(generation.adapter) if generation.adapter is not None else done.tokens, text="")


class BytePrompts:
    """A prompt's tokens are its bytes."""

    def encode(self, request: InferenceRequest) -> tuple[int, ...]:
        """The bytes of `prompt`."""
        return tuple((request.prompt or "").encode())


@dataclass(frozen=True)
class Site:
    """Where workers of one pool stand."""

    connection: Connection
    pool: str
    store_uri: str
    room: Path
    witnesses: Witnesses


class Behind:
    """A catalog that is told of everything `lag_s` later, in order: a worker that is behind the others."""

    def __init__(self, catalog: Catalog, lag_s: float) -> None:
        self._catalog = catalog
        self._lag_s = lag_s
        self._coming: asyncio.Queue[tuple[float, int, Sequence[LogRecord], int]] = asyncio.Queue()

    def apply(self, partition: int, records: Sequence[LogRecord], next_offset: int) -> None:
        """Take note of records for later."""
        self._coming.put_nowait((time.monotonic() + self._lag_s, partition, records, next_offset))

    async def run(self) -> None:
        """Apply what is due, for ever."""
        while True:
            due_s, partition, records, next_offset = await self._coming.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            self._catalog.apply(partition, records, next_offset)


@asynccontextmanager
async def _lagging(site: Site, path: Path, partitions: int, lag_s: float) -> AsyncIterator[Catalog]:
    with Catalog(path, partitions) as catalog:
        behind = Behind(catalog, lag_s)
        reader = LogReader(site.connection, contracts.ADAPTER_REVISIONS.name(), behind.apply)
        await reader.start()
        applying = asyncio.create_task(behind.run())
        try:
            yield catalog
        finally:
            await reader.stop()
            applying.cancel()
            await asyncio.gather(applying, return_exceptions=True)


@asynccontextmanager
async def witness_worker(site: Site, name: str, lag_s: float) -> AsyncIterator[None]:
    """A worker that serves until the block ends, its catalog `lag_s` behind. Raises BusUnavailable, BaseConflict."""
    async with AsyncExitStack() as parts:
        producer = Producer(site.connection, source=name)
        await producer.start()
        parts.push_async_callback(producer.stop)
        base = await found_pool(site.connection, producer, site.witnesses.base(site.pool))
        count = await producer.partitions(contracts.ADAPTER_REVISIONS)
        catalog = await parts.enter_async_context(_lagging(site, site.room / name, count, lag_s))
        replies = await producer.partitions(contracts.INFERENCE_REPLIES)
        engine = site.witnesses.engine()
        await engine.start()
        parts.push_async_callback(engine.stop)
        worker, intake = _assembled(site, name, base, catalog, producer, replies, engine, parts)
        await intake.start()
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            await intake.drain(_WAIT_S)
            await intake.stop()
            await running


def _assembled(
    site: Site,
    name: str,
    base: PoolBase,
    catalog: Catalog,
    producer: Producer,
    replies: int,
    engine: GenerationEngine,
    parts: AsyncExitStack,
) -> tuple[ServingWorker, Intake]:
    metrics, interruptions = Metrics(), Interruptions()
    tier_bytes = TIER_ADAPTERS * AdapterBlock.build(site.witnesses.made(0)).nbytes
    source = AdapterSource(Store(site.store_uri), site.witnesses.layers, base.max_rank)
    leasing = Leasing(Loader(source, HostTier(tier_bytes), DeviceTier(tier_bytes)), metrics, previous_in(catalog))
    parts.push_async_callback(leasing.close)
    follow(catalog, leasing)
    admission = Admission(catalog, BytePrompts(), base, AdmissionLimits(base.context_tokens, _WAIT_S, _WAIT_S))
    answers = Answers(producer, replies)
    identity = Identity(name, base.base_digest, contracts.INFERENCE_BATCH.name(site.pool))
    completer = Completer(engine, leasing, admission, answers, Cancellations(interruptions.cancel, _WAIT_S), identity)
    lanes = [lane.name(site.pool) for lane in (contracts.INFERENCE_REQUESTS, contracts.INFERENCE_BATCH)]
    intake = Intake(site.connection, lanes, f"serve-{site.pool}", DeadLetters(producer), seat=Seat(name, static=False))
    moving = Lanes(producer, site.pool, TenantShares(10_000, 1.0), _WAIT_S)
    consequences = Consequences(QuarantineReports(producer), moving, CanaryTallies(catalog))
    return ServingWorker(intake, completer, answers, consequences, metrics, interruptions), intake
