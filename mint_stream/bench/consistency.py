"""Publishes under load with several workers, every answer recorded, and the whole history checked.

Each adapter has one publisher: it announces revision after revision, every so often moves production back, and after each move asks for
what it has just published (by the position it was told), for an older revision by its number, and for whatever is production now.
"""

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import torch

from mint_stream.adapter import AdapterWeights
from mint_stream.app.local_system import LocalSystem
from mint_stream.app.measure import machine, versions
from mint_stream.bench.history import Answered, Asked, Findings, Published, check
from mint_stream.bench.witness import PROMPT, WITNESS_TOKENS, Hashes, Site, Witnesses, witness_worker
from mint_stream.bench.witness_model import Models
from mint_stream.client import Client
from mint_stream.client.connect import connection_from
from mint_stream.errors import BrokerFailed, ReplyTimeout
from mint_stream.messages.adapters import Manifest
from mint_stream.messages.inference import InferenceRequest, InferenceResult, Sampling
from mint_stream.messages.shared import CatalogPosition
from mint_stream.model.base import load_base
from mint_stream.model.pull import resolve_base
from mint_stream.settings import Settings
from mint_stream.store import Store

AT_ONCE = 64
BACK_EVERY = 8
"""After so many announces production moves back to an older revision, and the next announce moves it on."""
WIDE = 4
"""Every second adapter is spread over so many partitions, so that several workers answer for it."""
LAG_S = 0.05
"""Each worker's catalog is so much later than the one before it; who asks for a position has to be made to wait."""
TIMEOUT_S = 60.0
SENTENCES = 5


@dataclass(frozen=True)
class Load:
    """What is done."""

    publishes: int = 1000
    adapters: int = 20
    workers: int = 2


class Recorder:
    """What happens, as it happens."""

    def __init__(self, client: Client, store: Store, witnesses: Witnesses, name: str) -> None:
        self.published: list[Published] = []
        self.asked: list[Asked] = []
        self.answered: list[Answered] = []
        self._client = client
        self._store = store
        self._name = name
        self._seats = asyncio.Semaphore(AT_ONCE)
        self._witnesses = witnesses
        self._base_digest = witnesses.base(client.pool).base_digest
        self.reused_tokens = 0
        self._partitions: dict[str, int] = {}

    def findings(self) -> Findings:
        """What is wrong with all of it."""
        return check(self.published, self.asked, self.answered)

    async def publish_all(self, load: Load) -> None:
        """Every adapter's publisher, all at once; returns when all answers are there."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(load.adapters):
                count = load.publishes // load.adapters + (number < load.publishes % load.adapters)
                tasks.create_task(self._publish(f"{self._name}-{number}", count, number * load.publishes, wide=number % 2 == 1))

    async def _publish(self, adapter_id: str, count: int, first_seed: int, wide: bool) -> None:
        mine: list[Published] = []
        async with asyncio.TaskGroup() as questions:
            for place in range(count):
                mine.append(await self._announce(adapter_id, first_seed + place))
                if place == 0 and wide:
                    await self._client.set_spread(adapter_id, WIDE)
                self._ask_about(mine, questions)
                if place % BACK_EVERY == BACK_EVERY - 1:
                    mine.append(await self._move_back(mine[len(mine) // 2]))
                    self._ask_about(mine, questions)

    def _ask_about(self, mine: list[Published], questions: asyncio.TaskGroup) -> None:
        """Of the first publish everybody has heard: who asks for no position in particular asks for that one."""
        last, older = mine[-1], mine[len(mine) // 3]
        questions.create_task(self._ask(last.adapter_id, last.offset))
        questions.create_task(self._ask(last.adapter_id, mine[0].offset))
        questions.create_task(self._ask(last.adapter_id, older.offset, pinned=older.number))

    async def _announce(self, adapter_id: str, seed: int) -> Published:
        weights = self._witnesses.made(seed)
        witness = str(await self._witnesses.testimony(weights))
        manifest = await asyncio.to_thread(self._stored, weights)
        event = await self._client.announce(adapter_id, manifest, promotion="auto", timeout_s=TIMEOUT_S)
        assert event.type == "revision-announced"
        assert event.catalog_position is not None
        return self._noted(event.catalog_position, adapter_id, event.number, event.digest, witness)

    async def _move_back(self, to: Published) -> Published:
        event = await self._client.promote(to.adapter_id, to.number, timeout_s=TIMEOUT_S)
        assert event.type == "alias-moved"
        assert event.catalog_position is not None
        return self._noted(event.catalog_position, to.adapter_id, to.number, to.digest, to.witness)

    def _stored(self, weights: AdapterWeights) -> Manifest:
        files, targets = weights.to_peft(), weights.targets()
        return self._store.put_revision(
            files, digest=weights.digest, base_digest=self._base_digest, targets=targets, parameters=weights.parameters
        )

    def _noted(self, position: CatalogPosition, adapter_id: str, number: int, digest: str, witness: str) -> Published:
        self._partitions[adapter_id] = position.partition
        self.published.append(Published(adapter_id, number, digest, witness, position.offset))
        return self.published[-1]

    async def _ask(self, adapter_id: str, offset: int, pinned: int | None = None) -> None:
        async with self._seats:
            request = InferenceRequest(
                request_id=uuid4().hex,
                adapter=adapter_id if pinned is None else f"{adapter_id}@{pinned}",
                prompt=PROMPT,
                sampling=Sampling(max_tokens=WITNESS_TOKENS, ignore_eos=True),
                min_catalog_position=CatalogPosition(partition=self._partitions[adapter_id], offset=offset),
            )
            self.asked.append(Asked(request.request_id, adapter_id, time.monotonic(), offset, pinned))
            try:
                result = await self._client.ask(request, TIMEOUT_S)
            except ReplyTimeout:
                return
            self.answered.append(_answered(result, time.monotonic()))
            self.reused_tokens += result.usage.reused_tokens if result.usage else 0


def _answered(result: InferenceResult, at: float) -> Answered:
    served = result.served_by
    if result.error is not None or served is None:
        return Answered(result.request_id, at, error=result.error.code if result.error else "nobody")
    witness = str(result.tokens)
    return Answered(result.request_id, at, served.worker_id, served.number or 0, served.revision_digest or "", witness)


async def measure(site: Site, load: Load) -> dict[str, Any]:
    """Run the load against workers of `site`, whose topics and registrar are there already."""
    async with AsyncExitStack() as parts:
        for number in range(load.workers):
            await parts.enter_async_context(witness_worker(site, f"worker-{number + 1}", number * LAG_S))
        client = await parts.enter_async_context(Client(site.connection, site.pool, name="mint-stream/bench"))
        recorder = Recorder(client, Store(site.store_uri), site.witnesses, f"consistency-{uuid4().hex[:8]}")
        begun = time.perf_counter()
        await recorder.publish_all(load)
        seconds = time.perf_counter() - begun
    return _report(load, recorder, seconds)


def _report(load: Load, recorder: Recorder, seconds: float) -> dict[str, Any]:
    findings = recorder.findings()
    return {
        "workload": {**vars(load), "lag_s": LAG_S},
        "seconds": seconds,
        "publishes": load.publishes,
        "moves": len(recorder.published),
        "requests": len(recorder.asked),
        "distinct_witnesses": len({move.witness for move in recorder.published}),
        "reused_prompt_tokens": recorder.reused_tokens,
        "answers_by_worker": dict(sorted(Counter(answer.worker_id for answer in recorder.answered).items())),
        "findings": findings.counts,
        "first_findings": {kind: list(found[:SENTENCES]) for kind, found in vars(findings).items() if found},
        "machine": machine(),
        "versions": versions("mint-stream", "aiokafka"),
    }


async def run(settings: Settings, load: Load, with_model: bool = False) -> dict[str, Any]:
    """The same on a broker and a registrar of the benchmark's own, or on the user's Kafka. Raises BrokerFailed, BaseUnusable."""
    async with AsyncExitStack() as parts:
        witnesses: Witnesses = await parts.enter_async_context(await _models(settings)) if with_model else Hashes()
        room = Path(parts.enter_context(TemporaryDirectory(prefix="mint-bench-")))
        system = LocalSystem(_in_room(settings, room), {"register": 1}, lambda _: None)
        parts.push_async_callback(system.stop)
        await system.start()
        if not await system.ready():
            raise BrokerFailed(f"the system of the benchmark did not start: {system.given_up}")
        site = Site(connection_from(system.settings), system.settings.pool_name, (room / "store").as_uri(), room, witnesses)
        return await measure(site, load)


async def _models(settings: Settings) -> Models:
    path = await asyncio.to_thread(resolve_base, settings.base, settings.home)
    return Models(await asyncio.to_thread(load_base, path, torch.float32))  # in fewer bits a token may differ by its company alone


def _in_room(settings: Settings, room: Path) -> Settings:
    """The user's settings with all local state in the room, and a pool that no base is of."""
    kafka = settings.kafka if settings.kafka.bootstrap_servers else settings.kafka.model_copy(update={"data_dir": None, "port": 0})
    return settings.model_copy(update={"pool": f"witness-{uuid4().hex[:8]}", "home": room, "kafka": kafka})
