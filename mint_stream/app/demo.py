"""The main job, end to end and measured: a revision is trained, announced, promoted, answers, and is rolled back, all over Kafka."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mint_stream.app.demo_adapters import APPRENTICE, STRANGERS, TRAINED, write_adapters
from mint_stream.app.demo_data import Example, examples, split
from mint_stream.app.demo_tally import Tally
from mint_stream.app.importing import import_adapter
from mint_stream.client import Client
from mint_stream.errors import MintError
from mint_stream.messages.adapters import AdapterEvent, RevisionAnnounced
from mint_stream.messages.inference import InferenceResult, Sampling
from mint_stream.messages.shared import CatalogPosition
from mint_stream.messages.training import Hyperparameters, LoraSettings, TrainingEvent, TrainingJob
from mint_stream.settings import Settings

ONE_WORD = Sampling(max_tokens=4, stop=("\n",))
FIRST_TOKEN = Sampling(max_tokens=1)
CHATTY = Sampling(max_tokens=16, stop=("\n",))


class Show(Protocol):
    """Where the demo tells what it is doing."""

    def step(self, title: str) -> None: ...

    def say(self, line: str) -> None: ...

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None: ...

    def training(self, event: TrainingEvent) -> None: ...


@dataclass(frozen=True)
class DemoSize:
    """How much of everything. The defaults fit six minutes on two cores."""

    heldout: int = 96
    training: int = 640
    steps: int = 40
    batch_size: int = 16
    mixed_requests: int = 25


@dataclass
class DemoReport:
    """What the demo measured; written by `--json`."""

    kafka_version: str = ""
    base_digest: str = ""
    requests_sent: int = 0
    results_visible: int = 0
    lost: int = 0
    duplicates_visible: int = 0
    heldout_n: int = 0
    accuracy_before: float = 0.0
    accuracy_after: float = 0.0
    accuracy_after_rollback: float = 0.0
    announce_to_first_token_ms: float = 0.0
    rollback_to_effect_ms: float = 0.0
    adapters_in_largest_batch: int = 0
    memory_mib: int = 0
    """All processes of the local system together, after serving and training."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Demo:
    """The steps of the demo against a running fleet. Each leaves its figures in `report`."""

    def __init__(self, client: Client, settings: Settings, show: Show, size: DemoSize, room: Path) -> None:
        self._client = client
        self._settings = settings
        self._show = show
        self._size = size
        self._room = room
        self._tally = Tally(client)
        self.report = DemoReport()
        self._untrained = 0
        """The number of the revision that answers as the base does: 1 on a fresh cluster, more where the demo ran before."""
        found = examples((size.heldout + size.training) // 8, seed=0)
        self._training, self._heldout = split(found, size.heldout)

    async def run(self) -> DemoReport:
        """Everything, in order. Raises what went wrong instead of reporting it."""
        async with self._stage("import adapters"):
            await self._import()
        async with self._stage("mixed stream"):
            await self._mixed()
        async with self._stage(f"held-out, revision {self._untrained}"):
            self.report.accuracy_before = await self._accuracy(self._untrained)
        async with self._stage("training"):
            announced = await self._train()
        async with self._stage(f"held-out, revision {announced.number}"):
            promoted = await self._client.promote(TRAINED, announced.number)
            self._say_event(promoted)
            self.report.accuracy_after = await self._accuracy(announced.number, promoted.catalog_position)
        async with self._stage("roll back"):
            position = await self._roll_back()
            self.report.accuracy_after_rollback = await self._accuracy(self._untrained, position)
        await self._count()
        return self.report

    @asynccontextmanager
    async def _stage(self, name: str) -> AsyncIterator[None]:
        self._show.step(name)
        begun = time.perf_counter()
        yield
        self.report.stage_seconds[name] = round(time.perf_counter() - begun, 2)

    async def _import(self) -> None:
        base = await self._client.pool_base()
        self.report.base_digest = base.base_digest
        for adapter_id, directory in (await asyncio.to_thread(write_adapters, base, self._room / "adapters")).items():
            event = await import_adapter(self._client, self._settings, adapter_id, str(directory))
            self._say_event(event)
            if adapter_id == TRAINED and isinstance(event, RevisionAnnounced):
                self._untrained = event.number
        await self._client.set_rule(TRAINED, "manual")
        await self._client.promote(TRAINED, self._untrained)  # where the demo ran before, its last run left the rule at manual

    async def _mixed(self) -> None:
        """Requests for the base and every adapter at once; the worker batches them together."""
        routes = [None, TRAINED, *STRANGERS]
        asked = [routes[number % len(routes)] for number in range(self._size.mixed_requests)]
        prompts = [f"The capital of {('France', 'Italy', 'Spain', 'Japan', 'Egypt')[n // len(routes) % 5]} is" for n in range(len(asked))]
        results = await asyncio.gather(*(self._ask(prompt, adapter, CHATTY) for prompt, adapter in zip(prompts, asked, strict=True)))
        rows = [(result.adapter or "(base)", prompt, (result.text or "").strip()) for prompt, result in zip(prompts, results, strict=True)]
        self._show.table(("adapter", "prompt", "answer"), rows[: 2 * len(routes)])
        self._show.table(("stage", "mean ms"), _mean_timings(results))

    async def _accuracy(self, number: int, position: CatalogPosition | None = None) -> float:
        """Share of held-out commands whose topic is named, asked of production, and proof that `number` answered."""
        asks = [self._ask(example.prompt, TRAINED, ONE_WORD, position) for example in self._heldout]
        results = await asyncio.gather(*asks)
        for result in results:
            _expect_revision(result, number)
        right = [_right(example, result) for example, result in zip(self._heldout, results, strict=True)]
        accuracy = sum(right) / len(right)
        self.report.heldout_n = len(right)
        self._show.table(("held-out command", "expected", "answer"), _sample(self._heldout, results))
        self._show.say(f"accuracy under {TRAINED}@{number}: {accuracy:.1%} of {len(right)}")
        return accuracy

    async def _train(self) -> RevisionAnnounced:
        """Submit two jobs, which share passes, watch them, and ask the first one's revision for a token as soon as it is announced."""
        async with self._client.revisions(TRAINED) as events:
            beside = asyncio.create_task(self._beside(await self._client.train(self._apprentice_job())))
            job_id = await self._client.train(self._job())
            asking = asyncio.create_task(self._first_token(events))
            async for event in self._client.watch(job_id):
                self._show.training(event)
                _expect_alive(event)
            await asyncio.wait_for(beside, timeout=60)
            return await asyncio.wait_for(asking, timeout=60)

    async def _beside(self, job_id: str) -> None:
        """The end of the other job."""
        async for event in self._client.watch(job_id):
            _expect_alive(event)
            if event.terminal:
                self._show.say(f"job {job_id}: {event.state}, revision {event.number} of {event.adapter_id}, trained in the same passes")

    async def _first_token(self, events: AsyncIterator[AdapterEvent]) -> RevisionAnnounced:
        async for event in events:
            if isinstance(event, RevisionAnnounced):
                self._say_event(event)
                result = await self._ask(self._heldout[0].prompt, f"{TRAINED}@{event.number}", FIRST_TOKEN, event.catalog_position)
                self.report.announce_to_first_token_ms = round(time.time() * 1000 - event.at_ms, 1)
                _expect_revision(result, event.number)
                return event
        raise AssertionError("the feed of events ended before the revision was announced")

    async def _roll_back(self) -> CatalogPosition | None:
        begun = time.perf_counter()
        event = await self._client.rollback(TRAINED)
        result = await self._ask(self._heldout[0].prompt, TRAINED, FIRST_TOKEN, event.catalog_position)
        self.report.rollback_to_effect_ms = round((time.perf_counter() - begun) * 1000, 1)
        _expect_revision(result, self._untrained)
        self._say_event(event)
        return event.catalog_position

    async def _count(self) -> None:
        counts = await self._tally.count()
        self.report.requests_sent, self.report.results_visible = counts.sent, counts.visible
        self.report.lost, self.report.duplicates_visible = counts.lost, counts.duplicates
        self.report.adapters_in_largest_batch = await self._tally.largest_batch()

    async def _ask(self, prompt: str, adapter: str | None, sampling: Sampling, after: CatalogPosition | None = None) -> InferenceResult:
        result = await self._client.generate(prompt, adapter, sampling=sampling, request_id=self._tally.next_id(), after=after)
        if result.error is not None:
            raise MintError(f"the fleet refused a request of the demo: {result.error.code}: {result.error.message}")
        return result

    def _job(self) -> TrainingJob:
        dataset = self._room / "household.jsonl"
        dataset.write_text("\n".join(example.line() for example in self._training) + "\n")
        return TrainingJob(
            job_id=f"demo-{time.time_ns()}",
            adapter_id=TRAINED,
            dataset_uri=dataset.as_uri(),
            lora=LoraSettings(rank=8, alpha=16),
            hyperparameters=Hyperparameters(
                steps=self._size.steps, batch_size=self._size.batch_size, learning_rate=1e-3, warmup_steps=4, max_length_tokens=256
            ),
            checkpoint_every_steps=20,
            promotion="manual",
            submitted_at_ms=time.time_ns() // 1_000_000,
        )

    def _apprentice_job(self) -> TrainingJob:
        """Another adapter of other rank and rate; small, so that its batches fit into the other's passes."""
        job = self._job()
        settings = {"steps": max(5, self._size.steps // 4), "batch_size": max(1, self._size.batch_size // 8), "learning_rate": 5e-4}
        changes = {
            "job_id": f"{job.job_id}-{APPRENTICE}",
            "adapter_id": APPRENTICE,
            "lora": LoraSettings(rank=4, alpha=8),
            "hyperparameters": job.hyperparameters.model_copy(update=settings),
        }
        return job.model_copy(update=changes)

    def _say_event(self, event: AdapterEvent) -> None:
        self._show.say(f"event {event.model_dump_json(exclude_none=True)}")


def _expect_revision(result: InferenceResult, number: int) -> None:
    served = result.served_by.number if result.served_by else None
    if served != number:
        raise MintError(f"request {result.request_id} was answered by revision {served}, not {number}")


def _expect_alive(event: TrainingEvent) -> None:
    if event.state in ("failed", "rejected", "cancelled"):
        raise MintError(f"the training job ended as {event.state}: {event.error.message if event.error else 'no reason given'}")


def _right(example: Example, result: InferenceResult) -> bool:
    return (result.text or "").strip().lower().startswith(example.label)


def _sample(heldout: Sequence[Example], results: Sequence[InferenceResult]) -> list[tuple[str, str, str]]:
    pairs = list(zip(heldout, results, strict=True))[:5]
    return [
        (example.prompt.splitlines()[1].removeprefix("Command: "), example.label, (result.text or "").strip()) for example, result in pairs
    ]


def _mean_timings(results: Sequence[InferenceResult]) -> list[tuple[str, str]]:
    timed = [result.timings.model_dump() for result in results if result.timings]
    return [(stage.removesuffix("_ms"), f"{sum(one[stage] for one in timed) / len(timed):.1f}") for stage in timed[0]]
