"""Jobs of grpo on a real broker, with a real serving worker that draws for them."""

import json
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mint_stream import contracts
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.messages.inference import InferenceRequest, request_digest
from mint_stream.messages.training import RolloutTerms, TrainingEvent, TrainingJob
from tests.training_system import POOL, TrainingSystem
from tests.workers.test_training import exit_codes

pytestmark = [pytest.mark.kafka]

QUESTIONS = "questions.jsonl"
LETTER = RolloutTerms(grader="regex", group_size=8, max_tokens=1)
"""Right is an answer that begins with one of half the bytes that are characters."""


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TrainingSystem]:
    async with TrainingSystem(tmp_path_factory.mktemp("rollouts")) as system:
        lines = [json.dumps({"prompt": f"{number}?", "answer": "^[a-z]"}) for number in range(6)]
        (system.data / QUESTIONS).write_text("\n".join(lines))
        yield system


@pytest.fixture
def name() -> str:
    """A job_id and adapter_id no other test uses."""
    return f"n{uuid.uuid4().hex[:10]}"


def drawn(system: TrainingSystem, name: str, file: str = QUESTIONS, adapter_id: str | None = None, **changes: Any) -> TrainingJob:
    settings = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "schedule": "constant"} | changes.pop("hyperparameters", {})
    fields = {"method": "grpo", "rollouts": LETTER, "publish_every_steps": 1, "promotion": "manual"} | changes
    return system.job(name, adapter_id or name, file, hyperparameters=settings, **fields)


def told(system: TrainingSystem, job_id: str) -> list[TrainingEvent]:
    """The job's events that tell of rollouts, one a step."""
    return [event for event in system.events if event.job_id == job_id and event.rollouts is not None]


class Bulk:
    """Every request of the pool's bulk lane."""

    def __init__(self, system: TrainingSystem) -> None:
        self._reader = LogReader(system.connection, contracts.INFERENCE_BATCH.name(POOL), self._apply)
        self._found: list[InferenceRequest] = []

    @classmethod
    @asynccontextmanager
    async def of(cls, system: TrainingSystem) -> "AsyncIterator[Bulk]":
        bulk = cls(system)
        await bulk._reader.start()
        try:
            yield bulk
        finally:
            await bulk._reader.stop()

    async def asked(self, adapter_id: str) -> list[InferenceRequest]:
        """Those for the adapter so far."""
        await self._reader.caught_up()
        return [one for one in self._found if (one.adapter or "").startswith(f"{adapter_id}@")]

    def _apply(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        self._found += [InferenceRequest.decode(record.value) for record in records]


async def test_a_policy_learns_from_what_its_own_revisions_answer_and_every_step_is_recorded(system: TrainingSystem, name: str) -> None:
    steps = 12
    async with system.serving(), system.trainer(), Bulk.of(system) as bulk:
        await system.submit(drawn(system, name, hyperparameters={"steps": steps}))
        end = await system.ended(name)
        asked = await bulk.asked(name)
    assert (end.state, end.number) == ("succeeded", steps), end.error
    events = told(system, name)
    assert [event.step for event in events] == list(range(1, steps + 1))
    figures = [event.rollouts for event in events if event.rollouts]
    assert [one.number for one in figures] == [None, *range(1, steps)] and {one.staleness for one in figures} == {0}
    assert {(one.graded, one.dropped) for one in figures} == {(32, 0)}
    rewards = [one.reward for one in figures]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3]), rewards
    revisions = await system.revisions(name)
    assert [(number, step) for number, _, step, _ in revisions] == [(number, number) for number in range(1, steps + 1)]
    manifest = system.store.read_manifest(system.catalog.revisions(name)[-1].uri or "")
    assert manifest.metrics["reward"] == pytest.approx(rewards[-1])
    assert {one.sampling.logprobs for one in asked} == {0} and {one.tenant for one in asked} == {"default"}
    assert len({one.name for one in asked}) == len(asked) == 32 * (steps - 1), "the first step's were asked of the bare base"


@pytest.mark.parametrize("loss", ["importance_sampling", "cispo"])
async def test_answers_are_drawn_while_others_are_learned_from_as_far_as_staleness_allows(
    system: TrainingSystem, name: str, loss: Any
) -> None:
    terms = LETTER.model_copy(update={"max_staleness": 1, "loss": loss})
    async with system.serving(), system.trainer():
        await system.submit(drawn(system, name, rollouts=terms, publish_every_steps=2, hyperparameters={"steps": 8}))
        assert (await system.ended(name)).state == "succeeded"
    figures = [event.rollouts for event in told(system, name) if event.rollouts]
    assert [one.staleness for one in figures] == [0, 0, 1, 1, 1, 1, 1, 1]
    assert [one.number for one in figures] == [None] * 4 + [1, 1, 2, 2]


async def test_answers_that_do_not_come_are_counted_and_the_rest_is_learned_from(system: TrainingSystem, name: str) -> None:
    """One of four prompts does not fit what serving workers take: its answers are errors. Where all are, the job says so and ends."""
    lines = [{"prompt": "x" * length, "answer": "^[a-z]"} for length in (2, 3, 140, 4)]
    (system.data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (system.data / f"{name}-long.jsonl").write_text(json.dumps(lines[2]))
    settings = {"steps": 2, "max_length_tokens": 200}
    async with system.serving(), system.trainer():
        await system.submit(drawn(system, name, f"{name}.jsonl", hyperparameters=settings))
        await system.submit(drawn(system, f"{name}-long", f"{name}-long.jsonl", hyperparameters=settings))
        assert (await system.ended(name)).state == "succeeded"
        end = await system.ended(f"{name}-long")
    assert [(one.rollouts.graded, one.rollouts.dropped) for one in told(system, name) if one.rollouts] == [(24, 8)] * 2
    assert (end.state, end.fault, end.error and end.error.code) == ("failed", "server", "no-rollouts")
    assert end.error is not None and "32 x prompt-too-long, e.g." in end.error.message


async def test_a_job_whose_grader_cannot_be_used_is_rejected_before_it_draws(
    system: TrainingSystem, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its items, for its name, or because what it needs cannot be imported where graders run: that ends no trainer."""
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (system.data / f"{name}.jsonl").write_text("\n".join(json.dumps({"prompt": "?", "answer": answer}) for answer in ("a", "(")))
    async with system.trainer(), Bulk.of(system) as bulk:
        await system.submit(drawn(system, f"{name}-pattern", f"{name}.jsonl"))
        await system.submit(drawn(system, f"{name}-none", rollouts=LETTER.model_copy(update={"grader": "no-such"})))
        await system.submit(drawn(system, f"{name}-extra", rollouts=LETTER.model_copy(update={"grader": "reasoning-gym:leg_counting"})))
        ends = {which: await system.ended(f"{name}-{which}") for which in ("pattern", "none", "extra")}
        asked = [one for which in ends for one in await bulk.asked(f"{name}-{which}")]
    assert {which: (end.state, end.error and end.error.code) for which, end in ends.items()} == {
        "pattern": ("rejected", "invalid-dataset"),
        "none": ("rejected", "invalid-rule"),
        "extra": ("rejected", "invalid-job"),
    }
    assert asked == []


async def test_while_a_job_waits_for_answers_the_others_train_and_it_can_be_paused_and_cancelled(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(drawn(system, name))
        await system.heard(name, lambda event: event.state == "running")
        await system.submit(system.job(f"{name}-other", f"{name}-other"))
        assert (await system.ended(f"{name}-other")).state == "succeeded"
        assert told(system, name) == [], "nobody serves"
        await system.control(name, "pause")
        await system.heard(name, lambda event: event.state == "paused")
        await system.control(name, "resume")
        await system.heard(name, lambda event: event.state == "running" and event.attempt == 2)
        await system.cancel(name)
        assert (await system.ended(name)).state == "cancelled"


async def test_a_job_left_by_its_trainer_while_it_waits_for_answers_is_taken_up_by_the_next_one(system: TrainingSystem, name: str) -> None:
    async with system.trainer():
        await system.submit(drawn(system, name))
        await system.beats(name, 2)
    async with system.serving(), system.trainer(worker_id="another"):
        assert (await system.ended(name)).state == "succeeded"
    assert len(told(system, name)) == 4


MOMENTS = ("claimed", "stepped:1", "announced", "publish-reported:2", "checkpoint-durable", "passed:2")


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_however_often_its_trainer_is_killed_a_job_asks_for_the_same_answers_and_has_one_revision_a_step(
    system: TrainingSystem, name: str
) -> None:
    terms = LETTER.model_copy(update={"max_staleness": 1})
    async with system.serving(), Bulk.of(system) as bulk:
        await system.submit(drawn(system, name, rollouts=terms, publish_every_steps=2, hyperparameters={"steps": 10}))
        assert await exit_codes(system, 1, MOMENTS) == dict.fromkeys(MOMENTS, -9) | {"": 0}
        assert (await system.ended(name)).state == "succeeded"
        asked = await bulk.asked(name)
    assert [(number, step) for number, _, step, _ in await system.revisions(name)] == [(n, 2 * n) for n in range(1, 6)]
    bodies = {(one.name, request_digest(one)) for one in asked}
    assert len(bodies) == len({one.name for one in asked}) == 6 * 32 < len(asked), "asked again, and never for anything else"
    figures = {(event.step, event.rollouts.number, event.rollouts.staleness) for event in told(system, name) if event.rollouts}
    numbers = [None] * 4 + [1, 1, 2, 2, 3, 3]
    assert figures <= {(step, number, min(1, (step - 1) // 2)) for step, number in enumerate(numbers, start=1)}
    assert all(event.rollouts.graded == 32 for event in told(system, name) if event.rollouts), "an answer that comes twice counts once"
