"""Serving workers without a model: an answer's tokens are a hash of the adapter it was computed with, so an answer testifies to its bytes.

All else is the serving worker's own: intake, catalog, admission, tiers, leases, results.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mint_stream import contracts
from mint_stream.adapter import AdapterBlock, AdapterWeights
from mint_stream.app.catalog_copy import current_catalog
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake
from mint_stream.bus.producer import Producer
from mint_stream.bus.seat import Seat
from mint_stream.cache.device import DeviceTier
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Loader
from mint_stream.cache.source import AdapterSource
from mint_stream.catalog import Catalog
from mint_stream.engine.generation import Completion, Generation, OnText
from mint_stream.engine.null import EchoEngine
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.inference import InferenceRequest
from mint_stream.messages.training import LoraSettings
from mint_stream.metrics import Metrics
from mint_stream.store import Store
from mint_stream.workers.admission import Admission, AdmissionLimits
from mint_stream.workers.answers import Answers
from mint_stream.workers.canary_tallies import CanaryTallies
from mint_stream.workers.cancellations import Cancellations
from mint_stream.workers.completing import Completer, Identity
from mint_stream.workers.interruptions import Interruptions
from mint_stream.workers.lanes import Consequences, Lanes
from mint_stream.workers.leasing import Leasing, previous_in
from mint_stream.workers.pools import found_pool
from mint_stream.workers.quarantine import QuarantineReports
from mint_stream.workers.serving import ServingWorker
from mint_stream.workers.shares import TenantShares

LAYERS: dict[str, tuple[int, int]] = {f"model.layers.{layer}.self_attn.q_proj": (16, 16) for layer in range(2)}
TIER_BYTES = 64 * 1024
"""Fewer than all adapters of a run: revisions are evicted and loaded again while others take their place."""
WITNESS_TOKENS = 8
ENGINE_S = 0.005
"""What an answer takes, so that requests are under way while aliases move."""
_WAIT_S = 60.0


def made(seed: int) -> AdapterWeights:
    """An adapter of these layers like no other."""
    fresh = AdapterWeights.fresh(LoraSettings(rank=2), LAYERS, seed, output_head=None)
    layers = {path: replace(layer, B=layer.A.T.contiguous()) for path, layer in fresh.layers.items()}
    return AdapterWeights(layers=layers, config=fresh.config)


def base_of(pool: str) -> PoolBase:
    """The base that these adapters are of."""
    digest = hashlib.sha256(b"witness").hexdigest()
    targets = made(0).targets()
    return PoolBase(
        pool=pool, base_digest=digest, architecture="Witness", context_tokens=4096, vocabulary_tokens=256, targets=targets, max_rank=2
    )


def witness_of(block: AdapterBlock) -> tuple[int, ...]:
    """The tokens of every answer that is computed with this block."""
    return tuple(hashlib.sha256(block.flat.contiguous().numpy().tobytes()).digest()[:WITNESS_TOKENS])


class WitnessEngine(EchoEngine):
    """Answers with the witness of the adapter."""

    async def run(self, generation: Generation, on_text: OnText | None = None) -> Completion:
        """As EchoEngine; the tokens say which bytes were resident when the answer was made."""
        done = await super().run(generation, on_text)
        await asyncio.sleep(ENGINE_S)
        tokens = witness_of(generation.adapter) if generation.adapter is not None else done.tokens
        return replace(done, tokens=tokens, text="")


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


@asynccontextmanager
async def witness_worker(site: Site, name: str) -> AsyncIterator[None]:
    """A worker that serves until the block ends. Raises BusUnavailable, BaseConflict."""
    async with AsyncExitStack() as parts:
        producer = Producer(site.connection, source=name)
        await producer.start()
        parts.push_async_callback(producer.stop)
        base = await found_pool(site.connection, producer, base_of(site.pool))
        count = await producer.partitions(contracts.ADAPTER_REVISIONS)
        revisions = contracts.ADAPTER_REVISIONS.model_copy(update={"partitions": count})
        catalog, _ = await parts.enter_async_context(current_catalog(site.connection, site.room / name, revisions))
        replies = await producer.partitions(contracts.INFERENCE_REPLIES)
        worker, intake = _assembled(site, name, base, catalog, producer, replies, parts)
        await intake.start()
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            await intake.drain(_WAIT_S)
            await intake.stop()
            await running


def _assembled(
    site: Site, name: str, base: PoolBase, catalog: Catalog, producer: Producer, replies: int, parts: AsyncExitStack
) -> tuple[ServingWorker, Intake]:
    metrics, interruptions = Metrics(), Interruptions()
    source = AdapterSource(Store(site.store_uri), LAYERS, base.max_rank)
    leasing = Leasing(Loader(source, HostTier(TIER_BYTES), DeviceTier(TIER_BYTES)), metrics, previous_in(catalog))
    parts.push_async_callback(leasing.close)
    admission = Admission(catalog, BytePrompts(), base, AdmissionLimits(base.context_tokens, _WAIT_S, _WAIT_S))
    answers = Answers(producer, replies)
    identity = Identity(name, base.base_digest, contracts.INFERENCE_BATCH.name(site.pool))
    completer = Completer(WitnessEngine(), leasing, admission, answers, Cancellations(interruptions.cancel, _WAIT_S), identity)
    lanes = [lane.name(site.pool) for lane in (contracts.INFERENCE_REQUESTS, contracts.INFERENCE_BATCH)]
    intake = Intake(site.connection, lanes, f"serve-{site.pool}", DeadLetters(producer), seat=Seat(name, static=False))
    moving = Lanes(producer, site.pool, TenantShares(10_000, 1.0), _WAIT_S)
    consequences = Consequences(QuarantineReports(producer), moving, CanaryTallies(catalog))
    return ServingWorker(intake, completer, answers, consequences, metrics, interruptions), intake
