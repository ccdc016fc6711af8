"""A policy learns by being graded, all over Kafka: what it scored on held-out questions before and after, item by item.

    warm-up (sft, few steps) ─► held-out score ─► grpo: the serving pool draws, a grader scores, the trainer learns ─► held-out score

The questions are household commands (app.demo_data), the right answer is the word for what is meant, graded by exact match.
"""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import uuid4

from mint_stream.app.measure import machine, versions
from mint_stream.bench.fleet import Fleet, fleet
from mint_stream.bench.rl_data import Data, write_data
from mint_stream.bench.wrong import WrongResult
from mint_stream.messages.inference import InferenceResult, Sampling
from mint_stream.messages.training import Hyperparameters, LoraSettings, PolicyLoss, RolloutTerms, TrainingEvent, TrainingJob
from mint_stream.promotion.graders import grade, named
from mint_stream.promotion.items import Item
from mint_stream.settings import Settings

GRADER = "exact-match"
RESAMPLES = 10_000
PATIENCE_S = 300.0
LEAST_ITEMS = 128
"""Held-out items below which nothing is said of a difference."""


@dataclass(frozen=True)
class Size:
    """How much of everything. The defaults fit ten minutes on two cores."""

    heldout: int = 160
    warmup_steps: int = 12
    warmup_batch: int = 16
    warmup_rate: float = 5e-4
    steps: int = 20
    questions: int = 8
    group_size: int = 8
    rate: float = 2e-4
    rank: int = 8
    max_tokens: int = 4
    max_staleness: int = 1
    loss: PolicyLoss = "ppo"
    room: tuple[float, float] = (0.2, 0.8)
    """What the warmed policy has to score, for it to have something to learn and somewhere to begin."""
    adapter: str = "policy"


@dataclass
class Course:
    """What happened, and when (seconds)."""

    seconds: dict[str, float] = field(default_factory=dict)
    events: list[TrainingEvent] = field(default_factory=list)

    @asynccontextmanager
    async def timed(self, part: str) -> AsyncIterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - begun


async def run(settings: Settings, size: Size) -> dict[str, Any]:
    """Measure. Raises WrongResult when the warmed policy has no room to learn, when an answer is not of the revision asked, or when a
    step learned from staler answers than allowed."""
    course, begun = Course(), time.perf_counter()
    async with fleet(settings, trainer=True) as running:
        data = write_data(running.room, size.heldout)
        async with course.timed("warm_up"):
            warmed = (await _ended(running, _warm_up(size, data))).number or 0
        async with course.timed("before"):
            before = await _scores(running, size, data.heldout, warmed)
        check_room(before, size)
        async with course.timed("rl"):
            end = await _ended(running, _policy_job(size, data, warmed), course)
        check_steps(course.events, size)
        async with course.timed("after"):
            after = await _scores(running, size, data.heldout, end.number or 0)
    course.seconds["total"] = time.perf_counter() - begun
    return _report(size, before, after, course)


def check_room(scores: Sequence[float], size: Size) -> None:
    """Raises WrongResult when a policy scores too badly to ever be rewarded, or too well to improve."""
    mean, (least, most) = statistics.mean(scores), size.room
    if not least <= mean <= most:
        raise WrongResult(f"the warmed policy scores {mean:.0%}, not {least:.0%} to {most:.0%}: give it more or fewer warm-up steps")


def check_steps(events: Sequence[TrainingEvent], size: Size) -> None:
    """Raises WrongResult unless every step was told once, with rollouts no staler than allowed."""
    figures = [(event.step, event.rollouts) for event in events if event.rollouts is not None]
    if [step for step, _ in figures] != list(range(1, size.steps + 1)):
        raise WrongResult(f"rollouts were told of steps {[step for step, _ in figures]}, not once of each of {size.steps}")
    if stale := [step for step, one in figures if one.staleness > size.max_staleness]:
        raise WrongResult(f"steps {stale} learned from answers of revisions more than {size.max_staleness} behind")


def paired_interval(before: Sequence[float], after: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % of the mean of after - before, item by item: percentiles of the means of resampled items (bootstrap)."""
    gains = [later - earlier for earlier, later in zip(before, after, strict=True)]
    chance = random.Random(seed)
    means = sorted(statistics.fmean(chance.choices(gains, k=len(gains))) for _ in range(RESAMPLES))
    return means[round(0.025 * RESAMPLES)], means[round(0.975 * RESAMPLES) - 1]


async def _ended(running: Fleet, job: TrainingJob, course: Course | None = None) -> TrainingEvent:
    """Submit the job and follow it to its end. Raises WrongResult when that is not success."""
    await running.client.train(job)
    events = [event async for event in running.client.watch(job.job_id)]
    if events[-1].state != "succeeded":
        raise WrongResult(f"job {job.job_id} {events[-1].state}: {events[-1].error}")
    if course is not None:
        course.events += events
    return events[-1]


async def _scores(running: Fleet, size: Size, items: Sequence[Item], number: int) -> list[float]:
    """The score of each item under one revision, answers greedy."""
    revision = (await running.client.adapter(size.adapter)).revisions[number - 1]
    sampling = Sampling(max_tokens=size.max_tokens)
    asks = (
        running.client.generate(item.prompt or "", f"{size.adapter}@{number}", sampling=sampling, timeout_s=PATIENCE_S) for item in items
    )
    grader, results = named(GRADER), await asyncio.gather(*asks)
    for result in results:
        _check_served(result, revision.digest)
    return [grade(grader, result.text or "", item) for result, item in zip(results, items, strict=True)]


def _check_served(result: InferenceResult, digest: str) -> None:
    if result.served_by is None or result.served_by.revision_digest != digest:
        raise WrongResult(f"a question was answered by {result.served_by}, not by {digest[:12]}: {result.error}")


def _warm_up(size: Size, data: Data) -> TrainingJob:
    settings = Hyperparameters(
        steps=size.warmup_steps, batch_size=size.warmup_batch, learning_rate=size.warmup_rate, warmup_steps=1, max_length_tokens=256
    )
    return _job(size, "warm-up", dataset_uri=data.warm_up_uri, hyperparameters=settings, lora=_lora(size))


def _policy_job(size: Size, data: Data, parent: int) -> TrainingJob:
    return _job(
        size,
        "rl",
        method="grpo",
        dataset_uri=data.questions_uri,
        parent=parent,
        rollouts=RolloutTerms(
            grader=GRADER, loss=size.loss, group_size=size.group_size, max_tokens=size.max_tokens, max_staleness=size.max_staleness
        ),
        hyperparameters=Hyperparameters(
            steps=size.steps, batch_size=size.questions, learning_rate=size.rate, schedule="constant", max_length_tokens=256
        ),
        publish_every_steps=1,
    )


def _job(size: Size, name: str, **fields: Any) -> TrainingJob:
    job_id = f"{name}-{uuid4().hex[:8]}"
    return TrainingJob(job_id=job_id, adapter_id=size.adapter, promotion="manual", submitted_at_ms=time.time_ns() // 1_000_000, **fields)


def _lora(size: Size) -> LoraSettings:
    return LoraSettings(rank=size.rank, alpha=2.0 * size.rank)


def _report(size: Size, before: Sequence[float], after: Sequence[float], course: Course) -> dict[str, Any]:
    figures = [event.rollouts for event in course.events if event.rollouts is not None]
    low, high = paired_interval(before, after)
    return {
        "workload": {**asdict(size), "grader": GRADER},
        "n": len(before),
        "score_before": statistics.fmean(before),
        "score_after": statistics.fmean(after),
        "gain": statistics.fmean(after) - statistics.fmean(before),
        "gain_interval_95": [low, high],
        "improved": len(before) >= LEAST_ITEMS and low > 0,
        "rewards": [one.reward for one in figures],
        "staleness": [one.staleness for one in figures],
        "rollouts": {"graded": sum(one.graded for one in figures), "dropped": sum(one.dropped for one in figures)},
        "seconds": {part: round(seconds, 1) for part, seconds in course.seconds.items()},
        "machine": machine(),
        "versions": versions("torch", "transformers", "aiokafka", "mint-stream"),
    }
