"""Jobs that are between two steps come together into the next pass, and one's end is nobody else's."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mint_stream.errors import DeviceLost, EngineFailed, TrainingDiverged
from mint_stream.trainer.run import StepReport
from mint_stream.workers.pass_loop import PassLoop
from mint_stream.workers.torch_thread import TorchThread


class Runs:
    """A trainer of runs that are names: a pass ends everybody's step, unless `judge` says otherwise."""

    def __init__(self, judge: Callable[[str, int], Any] = lambda _run, number: StepReport(number, 0.0, 0.0, 0.0, 1)) -> None:
        self.passes: list[list[str]] = []
        self.left: list[str] = []
        self._judge = judge

    def advance(self, runs: Sequence[str]) -> dict[str, Any]:
        self.passes.append(sorted(runs))
        outcomes = {run: self._judge(run, len(self.passes)) for run in runs}
        return {run: outcome for run, outcome in outcomes.items() if outcome is not None}

    def prove(self) -> None:
        raise DeviceLost("not even the base")

    def leave(self, run: str) -> None:
        self.left.append(run)


@pytest.fixture
async def thread() -> AsyncIterator[TorchThread]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield TorchThread(executor)


def loop_of(thread: TorchThread, trainer: Any) -> Any:
    return PassLoop(thread, trainer, lambda _effect: None)


async def steps(passes: Any, run: str, count: int) -> None:
    for _ in range(count):
        await passes.step(run)


async def test_jobs_stay_together_from_step_to_step(thread: TorchThread) -> None:
    trainer = Runs()
    passes = loop_of(thread, trainer)
    await asyncio.gather(*(steps(passes, run, 5) for run in "abc"))
    assert trainer.passes == [["a", "b", "c"]] * 5


async def test_a_job_joins_at_the_next_pass_and_leaves_between_two(thread: TorchThread) -> None:
    trainer = Runs()
    passes = loop_of(thread, trainer)
    long = asyncio.create_task(steps(passes, "long", 6))
    await asyncio.sleep(0)
    while len(trainer.passes) < 2:
        await asyncio.sleep(0)
    await steps(passes, "short", 2)
    await passes.leave("short")
    await long
    assert [run for one in trainer.passes for run in one].count("long") == 6 and ["long", "short"] in trainer.passes
    assert trainer.passes[0] == trainer.passes[-1] == ["long"] and trainer.left == ["short"]


async def test_a_step_of_several_passes_ends_with_its_last(thread: TorchThread) -> None:
    def judge(run: str, number: int) -> StepReport | None:
        return StepReport(number, 0.0, 0.0, 0.0, 1) if run == "small" or number % 3 == 0 else None

    trainer = Runs(judge)
    passes = loop_of(thread, trainer)
    large, *small = await asyncio.gather(passes.step("large"), *[steps(passes, "small", 3)])
    assert large.step == 3 and trainer.passes == [["large", "small"]] * 3 and small == [None]


async def test_a_job_that_diverges_is_told_alone(thread: TorchThread) -> None:
    def judge(run: str, number: int) -> Any:
        return TrainingDiverged("sick") if run == "sick" and number == 2 else StepReport(number, 0.0, 0.0, 0.0, 1)

    passes = loop_of(thread, Runs(judge))
    sick, well = await asyncio.gather(steps(passes, "sick", 9), steps(passes, "well", 4), return_exceptions=True)
    assert isinstance(sick, TrainingDiverged) and well is None


class KernelRefused(Exception):
    """As triton's errors: of no kind that Python or torch have."""


@pytest.mark.parametrize("kind", [RuntimeError, KernelRefused, AssertionError])
async def test_a_fault_that_is_nobodys_ends_the_steps_in_the_pass_and_no_later_ones(thread: TorchThread, kind: type[Exception]) -> None:
    def judge(_run: str, number: int) -> Any:
        if number == 1:
            raise kind("the device is gone")
        return StepReport(number, 0.0, 0.0, 0.0, 1)

    passes = loop_of(thread, Runs(judge))
    both = await asyncio.gather(passes.step("a"), passes.step("b"), return_exceptions=True)
    assert all(isinstance(error, EngineFailed) and "the device is gone" in str(error) for error in both)
    assert (await passes.step("a")).step == 2


async def test_a_device_that_is_lost_is_told_as_such(thread: TorchThread) -> None:
    with pytest.raises(DeviceLost, match="not even the base"):
        await loop_of(thread, Runs()).prove()
