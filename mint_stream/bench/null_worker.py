"""A worker without a model, as a process: `python -m mint_stream.bench.null_worker ours|raw BOOTSTRAP POOL GROUP`. Says "ready" and works.

`ours` is the serving worker whole, intake to acknowledged result, around an engine that answers with the prompt. `raw` is what aiokafka
alone needs: it sends each request back as its result, acknowledged by all replicas, and commits now and then, as aiokafka does by itself.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from mint_stream import contracts
from mint_stream.app.serve_parts import admission_limits, intake_limits
from mint_stream.bus.connection import Connection
from mint_stream.bus.dead_letters import DeadLetters
from mint_stream.bus.intake import Intake
from mint_stream.bus.producer import Producer
from mint_stream.cache.device import DeviceTier
from mint_stream.cache.host import HostTier
from mint_stream.cache.loader import Loader
from mint_stream.cache.source import AdapterSource
from mint_stream.catalog import Catalog
from mint_stream.engine.null import EchoEngine
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.inference import InferenceRequest
from mint_stream.messages.shared import TargetShape
from mint_stream.metrics import Metrics
from mint_stream.settings import ServingSettings
from mint_stream.store import Store
from mint_stream.workers.admission import Admission
from mint_stream.workers.answers import Answers
from mint_stream.workers.canary_tallies import CanaryTallies
from mint_stream.workers.cancellations import Cancellations
from mint_stream.workers.completing import Completer, Identity
from mint_stream.workers.following import previous_in
from mint_stream.workers.interruptions import Interruptions
from mint_stream.workers.lanes import Consequences, Lanes
from mint_stream.workers.leasing import Leasing
from mint_stream.workers.quarantine import QuarantineReports
from mint_stream.workers.serving import ServingWorker
from mint_stream.workers.shares import TenantShares

SERVING = ServingSettings(tenant_share=1.0)
"""As it ships, but one tenant may have everything: there is no other."""


class Tokens:
    """Prompts come as tokens here."""

    def encode(self, request: InferenceRequest) -> tuple[int, ...]:
        """They are the prompt."""
        return request.prompt_tokens or ()


async def ours(connection: Connection, pool: str, group: str) -> None:
    """The serving worker until it is killed."""
    async with _worker(connection, pool, group) as worker:
        print("ready", flush=True)
        await worker.run()


@asynccontextmanager
async def _worker(connection: Connection, pool: str, group: str) -> AsyncIterator[ServingWorker]:
    async with AsyncExitStack() as parts:
        room = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        producer = Producer(connection, source=group)
        await producer.start()
        parts.push_async_callback(producer.stop)
        partitions = await producer.partitions(contracts.ADAPTER_REVISIONS)
        catalog = parts.enter_context(Catalog(None, partitions))
        intake = Intake(connection, _lanes(pool), group, DeadLetters(producer), intake_limits(SERVING))
        worker = _assembled(intake, producer, catalog, room, pool, await producer.partitions(contracts.INFERENCE_REPLIES))
        await parts.enter_async_context(intake)
        await intake.until(lambda: bool(intake.assigned))
        yield worker


def _assembled(intake: Intake, producer: Producer, catalog: Catalog, room: Path, pool: str, reply_partitions: int) -> ServingWorker:
    metrics, interruptions, engine = Metrics(), Interruptions(), EchoEngine()
    base = _base(pool)
    loader = Loader(AdapterSource(Store(room.as_uri()), {}, base.max_rank), HostTier(2**20), DeviceTier(2**20))
    answers = Answers(producer, reply_partitions)
    admission = Admission(catalog, Tokens(), base, admission_limits(base, SERVING))
    cancellations = Cancellations(interruptions.cancel, keep_s=SERVING.max_deadline_s)
    identity = Identity("null", base.base_digest, contracts.INFERENCE_BATCH.name(pool))
    completer = Completer(engine, Leasing(loader, metrics, previous_in(catalog)), admission, answers, cancellations, identity)
    lanes = Lanes(producer, pool, TenantShares(SERVING.intake_records, SERVING.tenant_share), SERVING.default_deadline_s)
    consequences = Consequences(QuarantineReports(producer), lanes, CanaryTallies(catalog))
    return ServingWorker(intake, completer, answers, consequences, metrics, interruptions)


def _base(pool: str) -> PoolBase:
    target = TargetShape(pattern="x", in_features=1, out_features=1, count=1)
    shape = {"architecture": "None", "context_tokens": 4096, "vocabulary_tokens": 256, "max_rank": 1}
    return PoolBase(pool=pool, base_digest="0" * 64, targets=(target,), **shape)


def _lanes(pool: str) -> list[str]:
    return [lane.name(pool) for lane in (contracts.INFERENCE_REQUESTS, contracts.INFERENCE_BATCH)]


def raw_topics(pool: str) -> tuple[str, str]:
    """Where raw requests and raw results of a pool are."""
    return f"bench-raw-requests-{pool}", f"bench-raw-results-{pool}"


async def raw(connection: Connection, pool: str, group: str) -> None:
    """Consume, produce, commit, until it is killed."""
    requests, results = raw_topics(pool)
    producer = AIOKafkaProducer(acks="all", enable_idempotence=True, **connection.options())
    consumer = AIOKafkaConsumer(requests, group_id=group, auto_offset_reset="earliest", **connection.options())
    async with producer, consumer:
        print("ready", flush=True)
        while True:
            await _echo(consumer, producer, results)


async def _echo(consumer: Any, producer: Any, results: str) -> None:
    sent = []
    for records in (await consumer.getmany(timeout_ms=200)).values():
        sent += [await producer.send(results, record.value, key=record.key) for record in records]
    await asyncio.gather(*sent)


WORKERS = {"ours": ours, "raw": raw}

if __name__ == "__main__":
    asyncio.run(WORKERS[sys.argv[1]](Connection(sys.argv[2]), *sys.argv[3:]))
